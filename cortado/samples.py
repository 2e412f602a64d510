"""Samples for calibration and verification: pictures and arrays from a folder or a file, one after the other."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph
from cortado.compiler.types import TensorType
from cortado.errors import FormatError, InputError
from cortado.files import read_file
from cortado.preprocess import Preprocess

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
TENSORS = (".pb", ".tensorprotos")  # Caffe2's TensorProtos
ARRAYS = (".npy", ".npz", *TENSORS)
MOST_CLASSES_BYTES = 1 << 30
MOST_TENSOR_BYTES = 1 << 31  # what one protobuf message may hold


@dataclass(frozen=True)
class Sample:
    """names: the files, or the numbers in an .npz, that the arrays were made of; as many as the network's batch."""

    names: tuple[str, ...]
    feeds: dict[str, np.ndarray]


def read_samples(
    path: str | PathLike[str], graph: Graph, preprocess: Mapping[str, Any], begin: int = 0, end: int | None = None
) -> Iterator[Sample]:
    """Samples `begin` to `end` of a folder (pictures, .npy, .npz and TensorProtos files by name) or of an .npz or TensorProtos file.

    A picture or .npy is for the only input; preprocess: fields of Preprocess, the rest comes from the input. A file of named arrays in a
    folder is one sample; alone it holds several samples along axis 0, or one of exactly the inputs' shapes. Samples of one
    element are put together for networks of larger batches. Only one is held at a time. InputError where something does not fit.
    """
    kinds = {node.name: node.types[0] for node in graph.inputs}
    if not kinds:
        raise InputError(f"network {graph.name!r} has no input to give samples to")
    singles = _from_folder(Path(path), graph, preprocess) if Path(path).is_dir() else _from_file(Path(path), kinds)
    return islice(_batched(singles, kinds), begin, end)


def _from_folder(folder: Path, graph: Graph, preprocess: Mapping[str, Any]) -> Iterator[Sample]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (*PICTURES, *ARRAYS))
    if not files:
        raise InputError(f"{folder}: no pictures, .npy, .npz or TensorProtos (.pb) files in it")
    first = graph.inputs[0]
    prepare = None
    for file in files:
        if file.suffix.lower() in (".npz", *TENSORS):
            yield Sample((file.name,), named_arrays(file))
            continue
        if len(graph.inputs) != 1:
            names = ", ".join(node.name for node in graph.inputs)
            raise InputError(
                f"{file}: the network has several inputs ({names}); give .npz or TensorProtos files with an array for each"
            )
        if file.suffix.lower() == ".npy":
            yield Sample((file.name,), {first.name: _load_npy(file)})
            continue
        if prepare is None:
            prepare = Preprocess.for_input(first.name, first.types[0].shape, graph.layouts.get(first.name, ""), preprocess)
        yield Sample((file.name,), {first.name: prepare(file)})


def _from_file(path: Path, kinds: Mapping[str, TensorType]) -> Iterator[Sample]:
    arrays = named_arrays(path)
    wrong = sorted(set(arrays) ^ set(kinds))
    if wrong:
        raise InputError(f"{path} holds arrays {', '.join(arrays) or 'of no name'}; the network's inputs are {', '.join(kinds)}")
    if all(arrays[name].shape == kind.shape for name, kind in kinds.items()):
        yield Sample(("0",), arrays)
        return
    for name, kind in kinds.items():
        if not kind.shape or arrays[name].shape[1:] != kind.shape[1:]:
            raise InputError(
                f"{path}: array {name} is {list(arrays[name].shape)}, but samples of the input are {list(kind.shape)}"
            )
    counts = {name: len(arrays[name]) for name in kinds}
    if len(set(counts.values())) != 1:
        raise InputError(f"{path} holds different numbers of samples: {counts}")
    for i in range(next(iter(counts.values()))):
        yield Sample((str(i),), {name: np.ascontiguousarray(arrays[name][i : i + 1]) for name in kinds})


def _batched(samples: Iterator[Sample], kinds: Mapping[str, TensorType]) -> Iterator[Sample]:
    """Whole samples as they are; single ones put together. What is left over at the end is not used."""
    batch = max((kind.shape[0] for kind in kinds.values() if kind.shape), default=1)
    waiting: list[Sample] = []
    for sample in samples:
        single = batch > 1 and all(array.shape[:1] == (1,) for array in sample.feeds.values())
        if not single:
            yield sample
            continue
        waiting.append(sample)
        if len(waiting) == batch:
            feeds = {name: np.concatenate([one.feeds[name] for one in waiting]) for name in waiting[0].feeds}
            yield Sample(tuple(name for one in waiting for name in one.names), feeds)
            waiting = []


def named_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file or of Caffe2's TensorProtos, by name. InputError where it is neither."""
    if path.suffix.lower() not in TENSORS:
        return _load_npz(path)
    from cortado.proto.caffe2_containers import parse_tensors

    try:
        return parse_tensors(read_file(path, MOST_TENSOR_BYTES, "tensors"), str(path))
    except FormatError as error:
        raise InputError(str(error)) from None


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, EOFError, zipfile.BadZipFile, OSError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not an .npz file of numpy arrays without pickles: {error}") from None


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a file of a numpy array without pickles: {error}") from None


def read_classes(path: str | PathLike[str]) -> dict[str, int]:
    """File name -> class index, from a CSV file with the columns `file` and `class`. InputError where that cannot be read."""
    try:
        text = read_file(path, MOST_CLASSES_BYTES, "a table of classes").decode("utf-8-sig")
        rows: Sequence[dict[str, str]] = list(csv.DictReader(io.StringIO(text, newline="")))
        return {row["file"]: int(row["class"]) for row in rows}
    except KeyError as error:
        raise InputError(f"{path}: no column {error}; it needs the columns file and class") from None
    except (UnicodeDecodeError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file of file names and class numbers: {error}") from None
