"""`cortado run`: arrays or pictures through a model, and the best classes or the arrays back."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from cortado.cli.console import print_json, progress
from cortado.cli.options import (
    FILE,
    CompileArguments,
    ModelSource,
    check_writable,
    compile_options,
    json_option,
    preprocess_options,
    source_options,
)
from cortado.errors import InputError
from cortado.labels import is_vector, read_labels, top
from cortado.preprocess import Preprocess
from cortado.samples import TENSORS, named_arrays

if TYPE_CHECKING:
    from cortado import Model
    from cortado.compiler.types import TensorInfo

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """One call of the model: the files it read and what came out."""

    files: tuple[str, ...]
    outputs: Feed


@click.command("run")
@source_options
@click.argument("data", nargs=-1, metavar="[NAME=]FILE...")
@compile_options
@preprocess_options
@click.option("--labels", type=FILE, help="Names of the classes, one a line.")
@click.option("--top", "count", type=click.IntRange(1), default=5, show_default=True, help="How many classes to print.")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE.npz", help="Save the output arrays.")
@json_option
def run_command(
    source: ModelSource,
    data: tuple[str, ...],
    arguments: CompileArguments,
    preprocess: dict[str, Any],
    labels: Path | None,
    count: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run MODEL on pictures or arrays.

    MODEL is a model file, or a folder that `compile` wrote; FILE a picture, an .npy, an .npz or a TensorProtos (.pb). Prints the best
    classes. Several files of a model with one input are run one after the other. For several inputs give NAME=FILE for each, or a file
    of named arrays.

    \b
    Example: SqueezeNet on a picture, prepared the way Caffe does
      cortado run squeezenet/ cat.jpg --input data=1,3,227,227 \\
          --resize 256 --crop 227 --channels BGR --mean 104,117,123 --labels synset_words.txt
    """
    if not data:
        raise click.UsageError("give at least one picture, .npy or .npz file to run the model on")
    names = read_labels(labels) if labels else ()
    if output:
        check_output(output)
    with progress(f"preparing {source.path}"):
        model = arguments.open_or_compile(source)
    threads = arguments.given.get("threads", 1)
    batches = feeds(model, data, merged(model.preprocess, preprocess))
    runs = [Run(files, model.run(feed, threads=threads)) for files, feed in batches]
    if names:
        check_labels(names, runs[0].outputs)
    if output:
        save(output, runs)
    if as_json:
        print_json({"schema": 1, "model": str(source.path), "runs": [as_document(run, count, names) for run in runs]})
    else:
        click.echo("\n".join(as_text(run, count, names) for run in runs))


def merged(stored: Preprocess | None, given: dict[str, Any]) -> dict[str, Any]:
    """What the model was compiled with, changed by what the command line says."""
    known = stored.to_dict() if stored is not None else {}
    if "scale" in given:
        known.pop("std", None)
    return {**known, **given}


def feeds(model: Model, data: tuple[str, ...], preprocess: dict[str, Any]) -> list[tuple[tuple[str, ...], Feed]]:
    """What to run, each with the files it came from. InputError where files and inputs do not match."""
    named: Feed = {}
    free: list[str] = []
    files = []
    for item in data:
        name, equals, path = item.partition("=")
        if equals and name in model.inputs:
            named[name] = read_array(path, name, model.inputs[name], preprocess)
            files.append(path)
        elif Path(item).suffix.lower() == ".npz":
            named.update(read_npz(item))
        elif Path(item).suffix.lower() in TENSORS:
            named.update(named_arrays(Path(item)))
            files.append(item)
        else:
            free.append(item)
    missing = [name for name in model.inputs if name not in named]
    if free and not missing:
        raise InputError(f"{free[0]}: a file too many; every input has its array already")
    if free and len(missing) != 1:
        raise InputError(f"which input is {free[0]} for? Give NAME={free[0]} with one of: {', '.join(model.inputs)}")
    if not free:
        return [(tuple(files), named)]
    name, info = missing[0], model.inputs[missing[0]]
    batches = stacked([(path, read_array(path, name, info, preprocess)) for path in free], info)
    return [((*files, *paths), {**named, name: array}) for paths, array in batches]


def stacked(items: list[tuple[str, np.ndarray]], info: TensorInfo) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Whole inputs as they are; single samples of a larger batch put together in the order given."""
    batch = info.shape[0] if info.shape else 1
    if not all(array.ndim and array.shape[0] == 1 for _, array in items):
        return [((path,), array) for path, array in items]
    if batch == 0 or len(items) % batch:
        raise InputError(f"the model takes {batch} samples at a time; {len(items)} were given")
    groups = [items[at : at + batch] for at in range(0, len(items), batch)]
    return [(tuple(path for path, _ in group), np.concatenate([array for _, array in group])) for group in groups]


def read_npz(path: str) -> Feed:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise unreadable(path, error) from None


def read_array(path: str, name: str, info: TensorInfo, preprocess: dict[str, Any]) -> np.ndarray:
    """An .npy, or the tensor of this name (or the only one) of TensorProtos, as it is; a picture prepared for the input."""
    if Path(path).suffix.lower() in TENSORS:
        tensors = named_arrays(Path(path))
        if name not in tensors and len(tensors) != 1:
            raise InputError(f"{path} holds tensors {', '.join(tensors) or 'of no name'}; none is called {name}")
        return tensors[name] if name in tensors else next(iter(tensors.values()))
    if Path(path).suffix.lower() != ".npy":
        return picture_input(path, name, info, preprocess)
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file")
    return InputError(f"{path}: not a file of numpy arrays without pickles: {error}")


def picture_input(path: str, name: str, info: TensorInfo, preprocess: dict[str, Any]) -> np.ndarray:
    """The picture as the input's shape and dtype ask; what --resize and the other options say comes first."""
    array = Preprocess.for_input(name, info.shape, info.layout, preprocess)(path)
    if array.shape[1:] != info.shape[1:]:
        made, wanted = list(array.shape[1:]), list(info.shape[1:])
        raise InputError(
            f"{path}: the picture becomes {made}, but input {name} needs {wanted}; change --resize, --crop or --channels"
        )
    with np.errstate(invalid="ignore"):
        cast = array.astype(info.dtype)
    if not np.array_equal(cast, array):
        raise InputError(f"input {name} takes {info.dtype}: leave out --range, --mean, --std and --scale, which make fractions")
    return cast


def check_labels(labels: tuple[str, ...], outputs: Feed) -> None:
    sizes = {name: value[0].size for name, value in outputs.items() if is_vector(value)}
    if len(labels) not in sizes.values():
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "no output is a list of classes"
        raise InputError(f"the labels name {len(labels)} classes, but {found}")


def check_output(path: Path) -> None:
    """Known before the model is compiled, not after."""
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: the outputs are saved as .npz; give a name that ends so")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    check_writable(path.parent)


def save(path: Path, runs: list[Run]) -> None:
    """All runs' outputs by name, one after the other along axis 0."""
    arrays = {name: np.concatenate([np.atleast_1d(run.outputs[name]) for run in runs]) for name in runs[0].outputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def as_text(run: Run, count: int, labels: tuple[str, ...]) -> str:
    lines = []
    for name, value in run.outputs.items():
        if not is_vector(value):
            lines.append(f"{', '.join(run.files)}  {name}: {summary(value)}")
            continue
        for sample, scores in enumerate(value):
            file = run.files[sample] if len(run.files) == len(value) else ", ".join(run.files)
            lines.append(f"{file}  {name}:" if len(run.outputs) > 1 else f"{file}:")
            named = labels if len(labels) == scores.size else ()
            lines += [f"  {score.value:10.6g}  {score.index:5d}  {score.label}".rstrip() for score in top(scores, count, named)]
    return "\n".join(lines)


def summary(value: np.ndarray) -> str:
    shape = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if not value.size:
        return shape
    if value.size <= 8:
        return f"{shape} {' '.join(f'{x:.6g}' for x in value.ravel().tolist())}"
    real = value.astype(np.float64)
    return f"{shape} min {real.min():.6g} max {real.max():.6g} mean {real.mean():.6g}"


def as_document(run: Run, count: int, labels: tuple[str, ...]) -> dict[str, Any]:
    outputs = {}
    for name, value in run.outputs.items():
        entry: dict[str, Any] = {"shape": list(value.shape), "dtype": value.dtype.name}
        if is_vector(value):
            named = labels if len(labels) == value[0].size else ()
            entry["top"] = [[vars(score) for score in top(scores, count, named)] for scores in value]
        outputs[name] = entry
    return {"files": list(run.files), "outputs": outputs}
