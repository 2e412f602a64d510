"""The wheel and the source archive hold what they should, all of it and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "cortado": "cortado",
    "compiler": "cortado/compiler",
    "backends": "cortado/backends",
    "runtime": "cortado/runtime",
    "proto": "cortado/proto",
}
REST_OF_SDIST = ("LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "cortado.egg-info", "pyproject.toml", "setup.cfg", "tests")


def settings() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in Python 3.11 and later")
    import tomllib

    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def shipped() -> dict[str, str]:
    """Path in the repository -> path in the wheel, of every file in the package's folders."""
    found = {}
    for folder, inside in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(path.relative_to(ROOT))] = f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
    return found


def test_the_package_list_names_every_folder() -> None:
    tool = settings()["tool"]["setuptools"]
    wanted = set()
    for folder, inside in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            wanted.add((Path(inside) / path.relative_to(ROOT / folder)).parent.as_posix().replace("/", "."))
    assert sorted(tool["packages"]) == sorted(wanted)
    assert tool["package-dir"] == {inside.replace("/", "."): folder for folder, inside in FOLDERS.items()}


def test_every_package_folder_has_an_init() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_versions_agree() -> None:
    import cortado

    assert settings()["project"]["version"] == cortado.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel made from it. The build runs in a copy: it writes beside the sources."""
    tree, out = tmp_path_factory.mktemp("tree") / "cortado", tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_the_wheel_installs_cortado_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = [name for name in names if name.endswith("top_level.txt")]
        assert archive.read(top_level).decode().split() == ["cortado"]
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "cortado = cortado.cli:entry" in archive.read(entry_points).decode()
    code = sorted(name for name in names if ".dist-info/" not in name)
    assert code == sorted(shipped().values())
    assert {name.partition("/")[0] for name in names if ".dist-info/" in name} == {top_level.partition("/")[0]}
    for needed in ("cortado/py.typed", "cortado/models/digits/init_net.pb", "cortado/models/digits/heldout.npz"):
        assert needed in code


@pytest.mark.slow
def test_the_source_archive_is_whole(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert set(shipped()) <= names
    assert {name.partition("/")[0] for name in names} <= {*FOLDERS, *REST_OF_SDIST}
