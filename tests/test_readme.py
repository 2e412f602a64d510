"""What the README says is true: its commands run, its programs compile and give the answers it shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cortado.cli.main import invoke
from cortado.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def commands() -> dict[str, tuple[list[str], str]]:
    """First two words of every shown command -> its words and the output shown below it."""
    found = {}
    for block in blocks("console"):
        line, _, output = block.removeprefix("$ ").replace("\\\n", " ").partition("\n")
        words = shlex.split(line)
        found[" ".join(words[:3])] = (words, output)
    return found


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `cortado demo -o demo` and the README's compile command ran."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoke(["demo", "-o", "demo", "--json"]) == 0
        assert invoke(commands()["cortado compile demo/model"][0][1:]) == 0
    return folder


@pytest.fixture
def in_demo(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(demo_folder)
    return demo_folder


def same_text(got: str, shown: str) -> None:
    """Equal word by word; numbers may differ in their last digits, since processors round differently."""
    assert len(got.split()) == len(shown.split()), f"{got}\n---\n{shown}"
    for word, wanted in zip(got.split(), shown.split(), strict=True):
        if re.fullmatch(r"\(?\d+\.\d+(e-?\d+)?\)?", wanted):
            assert float(word.strip("()")) == pytest.approx(float(wanted.strip("()")), rel=1e-3, abs=1e-5)
        else:
            assert word == wanted, f"{got}\n---\n{shown}"


def test_the_run_command_prints_what_is_shown(in_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, shown = commands()["cortado run demo/lib"]
    assert invoke(words[1:]) == 0
    same_text(capsys.readouterr().out, shown)


def test_the_c_program(in_demo: Path) -> None:
    import cortado

    words, shown = next(entry for key, entry in commands().items() if key.startswith("cc "))
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (program,) = blocks("c")
    assert len(program.splitlines()) <= 30
    Path("classify.c").write_text(program, encoding="utf-8")
    build = words[1 : words.index("&&")]
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", *build], check=True)
    model = cortado.open("demo/lib")
    for digit in range(10):
        done = subprocess.run(["./classify", f"demo/digit{digit}.pgm"], check=True, capture_output=True, text=True)
        pixels = Preprocess(channels="GRAY", range=1.0)(f"demo/digit{digit}.pgm")
        prob = model.run({"data": pixels})["prob"].ravel()
        best = np.argsort(-prob, kind="stable")[:3]
        assert done.stdout == "".join(f"{place}. {k} ({prob[k]:.4f})\n" for place, k in enumerate(best, 1))
        if f"demo/digit{digit}.pgm" in words:
            same_text(done.stdout, shown)
    assert subprocess.run(["./classify"], capture_output=True).returncode == 2


def test_the_program_with_threads(in_demo: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (program,) = blocks("c", "docs/desktop.md")
    Path("threads.c").write_text(program, encoding="utf-8")
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(
        [compiler, *warnings, "-Idemo/lib", "threads.c", "demo/lib/libdigits.a", "-pthread", "-o", "threads"], check=True
    )
    assert subprocess.run(["./threads"], check=True, capture_output=True, text=True).stdout == "the same bits\n"


def test_the_python_program(in_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(1, 10)\ndigits for host\n")


@pytest.mark.slow
def test_the_caffe2_example(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("squeezenet").mkdir()
    for name in ("init_net.pb", "predict_net.pb"):
        shutil.copy(shared / "models" / "squeezenet_v1_0" / name, "squeezenet")
    shutil.copy(shared / "images" / "photos" / "cat.jpg", ".")
    shutil.copy(next((shared / "images").rglob("synset_words.txt")), ".")
    words, shown = commands()["cortado run squeezenet/"]
    assert invoke(words[1:]) == 0
    same_text(capsys.readouterr().out, shown)


def test_the_files_it_points_to_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in {*re.findall(r"\]\((?!https?:)([^)#]+)\)", text), *re.findall(r"`((?:docs|scripts|benchmarks)/[\w./]+)`", text)}:
        assert (ROOT / path).exists(), path
