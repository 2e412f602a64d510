"""Recognising a model by its content and reading it: files, folders, bytes, protobuf messages, arrays."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cortado.compiler.types import NUMPY_DTYPE
from cortado.errors import FormatError, InputError, UnsupportedError
from cortado.files import read_file
from cortado.predictor import Inputs, predictor_of, value_info
from cortado.proto.caffe2 import NetDef, parse_net, parse_net_text, serialize_net
from cortado.proto.caffe2_containers import is_minidb, parse_meta_net, parse_minidb, parse_tensors

META_NET, MINIDB, TENSORS = "Caffe2 MetaNetDef", "Caffe2 database (minidb)", "Caffe2 TensorProtos"
CAFFE2, CAFFE2_TEXT, CAFFE_TEXT, CAFFE_WEIGHTS, ONNX, TFLITE, ARRAYS, ARCHIVE, HDF5 = (
    "Caffe2 NetDef", "Caffe2 NetDef (text)", "Caffe prototxt", "Caffe model (.caffemodel)", "ONNX model", "TFLite model",
    "numpy archive (.npz)", "archive", "HDF5 file",
)  # fmt: skip
_MAX_FILE = 2**31 - 1  # protobuf's own limit
_CAFFE_LAYER = re.compile(rb"^\s*layers?\s*\{", re.MULTILINE)
_HEAD = 65536


@dataclass(frozen=True)
class Nets:
    """A predict net and, where the source held one, the init net that goes with it, each with what to call it in messages.

    arrays: weights that the source holds itself. inputs: shapes and dtypes that it gives to inputs.
    """

    where: str
    predict: NetDef
    init_where: str = ""
    init: NetDef | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=dict)


def recognise(data: bytes) -> str:
    """What the bytes are, by content alone. Anything else that may be protobuf counts as a Caffe2 NetDef; its reader will tell."""
    if data[4:8] == b"TFL3":
        return TFLITE
    if data[:4] == b"PK\x03\x04":
        return ARRAYS if b".npy" in data[:300] else ARCHIVE
    if data[:2] == b"\x1f\x8b" or data[257:262] == b"ustar":
        return ARCHIVE
    if data[:4] == b"\x89HDF":
        return HDF5
    if is_minidb(data):
        return MINIDB
    fields = list(_fields(data, 0, len(data), 1 << 16))
    whole = bool(fields) and fields[-1][3] == len(data)
    if not whole and _is_text(data[:_HEAD]):
        return CAFFE_TEXT if _CAFFE_LAYER.search(data) else CAFFE2_TEXT
    if fields and fields[0][:2] == (1, 0):
        return ONNX
    for number, kind, start, end in fields:
        # NetParameter.layer is field 100; in the older form a layer's type (5) is a number, where an OperatorDef has arguments.
        if (number, kind) == (100, 2):
            return CAFFE_WEIGHTS
        if (number, kind) == (2, 2) and any(inner[:2] == (5, 0) for inner in _fields(data, start, end, 64)):
            return CAFFE_WEIGHTS
    return _caffe2_kind(data, fields) if whole else CAFFE2


def _caffe2_kind(data: bytes, fields: list[tuple[int, int, int, int]]) -> str:
    """Which of Caffe2's messages: an operator has a type (4), an entry of a MetaNetDef a key (1) and a net (2) and nothing else."""
    inner = [
        (number, [field[:2] for field in _fields(data, start, end, 64)]) for number, kind, start, end in fields[:64] if kind == 2
    ]
    nets = [found for number, found in inner if number == 2]
    if nets and all(found == [(1, 2), (2, 2)] for found in nets) and {number for number, _ in inner} <= {1, 2, 3, 4, 5, 6, 7}:
        return META_NET
    if not nets and inner and all(number == 1 and (2, 0) in found and (7, 2) in found for number, found in inner):
        return TENSORS
    return CAFFE2


def _is_text(head: bytes) -> bool:
    """Text holds no control characters but white space; every operator of a binary NetDef begins with one."""
    return not any(byte < 32 and byte not in b"\t\n\v\f\r" for byte in head) and b"\x7f" not in head


def _fields(data: bytes, at: int, end: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start, end) of a protobuf message's fields, until something is not one."""
    for _ in range(limit):
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind not in (0, 1, 2, 5) or number == 0:
            return
        start = at
        size, at = _varint(data, at, end) if kind in (0, 2) else ((8 if kind == 1 else 4), at)
        if kind != 0:
            start, at = at, at + size
        if at > end:
            return
        yield number, kind, start, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number and the place after it; number 0 where none is."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= end:
            return 0, end
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    return 0, end


# --- nets ---


def read_nets(source: Any) -> Nets:
    """A path, bytes, message object or NetDef record; a folder is searched for a pair of nets."""
    if isinstance(source, NetDef):
        return Nets(source.name or "the net", source)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return _read_folder(Path(source))
    where, data = _contents(source, "source")
    kind = recognise(data) if data else ""
    if kind not in (META_NET, MINIDB):
        return Nets(where, _parse(data, where))
    meta, arrays = parse_minidb(data, where) if kind == MINIDB else (parse_meta_net(data, where), {})
    if meta is None:
        raise FormatError(f"{where}: a database of tensors without a net; it can be given as init=")
    found = predictor_of(meta, arrays, where)
    return Nets(where, found.predict, where, found.init, found.arrays, found.inputs)


def _contents(source: Any, what: str) -> tuple[str, bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{what} (bytes)", bytes(source)
    if hasattr(source, "SerializeToString"):
        return f"{what} ({type(source).__name__} message)", source.SerializeToString()
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"{what} is a {type(source).__name__}; it must be a path, bytes or a protobuf message")
    path = Path(source)
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise InputError(f"{path}: neither a file nor a pipe")  # a device such as /dev/zero never ends
        if status.st_size > _MAX_FILE:
            raise FormatError(f"{path}: larger than 2 GB, which no model file of these formats can be")
        return str(path), read_file(path, _MAX_FILE, "a model file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{str(source)[:80]!r} is no path ({error})") from None


def _parse(data: bytes, where: str) -> NetDef:
    if not data:
        raise FormatError(f"{where}: the file is empty")
    kind = recognise(data)
    if kind == CAFFE2:
        return parse_net(data, where)
    if kind == CAFFE2_TEXT:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{where}: neither a binary model nor UTF-8 text") from None
        return parse_net_text(text, where)
    raise UnsupportedError(f"{where}: found {kind}; only Caffe2 NetDefs (.pb, .pbtxt) can be read so far", (where,))


def _read_folder(folder: Path) -> Nets:
    """The predict and the init net among the folder's files, told apart by what they read and write."""
    found: dict[str, NetDef] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        net = _net_in(path)
        # The same net is often there in binary and in text form.
        if net is not None and not any(_equal(net, other) for other in found.values()):
            found[path.name] = net
    if not found:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise FormatError(f"{folder}: no Caffe2 NetDef in this folder; it holds {names}")
    inputs = value_info(folder)
    if len(found) == 1:
        return Nets(str(folder / next(iter(found))), next(iter(found.values())), inputs=inputs)
    predict = [name for name, net in found.items() if any(_feeds(other, net) for other in found.values() if other is not net)]
    init = [name for name, net in found.items() if any(_feeds(net, found[p]) for p in predict if found[p] is not net)]
    if len(found) != 2 or len(predict) != 1 or len(init) != 1:
        raise FormatError(
            f"{folder}: cannot tell which of {', '.join(found)} are the predict and the init net; name both: "
            "load(predict, init=init)"
        )
    return Nets(str(folder / predict[0]), found[predict[0]], str(folder / init[0]), found[init[0]], inputs=inputs)


def _equal(a: NetDef, b: NetDef) -> bool:
    def outline(net: NetDef) -> list[tuple[object, ...]]:
        return [(op.type, op.inputs, op.outputs) for op in net.operators]

    return outline(a) == outline(b) and serialize_net(a) == serialize_net(b)


def _net_in(path: Path) -> NetDef | None:
    """The file's net; None where it is something else. Damaged files that are called like nets are reported."""
    if path.stat().st_size > _MAX_FILE:
        return None
    data = path.read_bytes()
    if not data or recognise(data) not in (CAFFE2, CAFFE2_TEXT):
        return None
    try:
        net = _parse(data, str(path))
    except FormatError:
        if path.suffix in (".pb", ".pbtxt"):
            raise
        return None
    return net if net.operators else None


def _feeds(init: NetDef, net: NetDef) -> bool:
    """Whether init writes a blob that net reads before writing it."""
    return not external_reads(net).isdisjoint(name for op in init.operators for name in op.outputs)


def external_reads(net: NetDef) -> set[str]:
    """Blobs that the net reads before it writes them."""
    written: set[str] = set()
    reads: set[str] = set()
    for op in net.operators:
        reads.update(name for name in op.inputs if name not in written)
        written.update(op.outputs)
    return reads


# --- arrays ---


def read_init(init: Any) -> NetDef | dict[str, np.ndarray] | Path:
    """What `init=` was given: a net, a mapping of arrays, or the path of a .npz file."""
    if isinstance(init, (NetDef, Mapping)):
        return init if isinstance(init, NetDef) else dict(init)
    where, data = _contents(init, "init")
    kind = recognise(data) if data else ""
    if kind == ARRAYS and isinstance(init, (str, os.PathLike)):
        return Path(init)
    if kind in (TENSORS, MINIDB):
        return parse_tensors(data, where) if kind == TENSORS else parse_minidb(data, where)[1]
    return _parse(data, where)


def arrays_from_npz(path: Path, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """The wanted arrays of a .npz file, those that it holds. Sizes are checked before anything is allocated."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for name in wanted:
                if f"{name}.npy" in names:
                    arrays[name] = _npy(archive, f"{name}.npy", f"{path}: array '{name}'")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise FormatError(f"{path}: not a readable .npz file ({error})") from None
    return arrays


def _npy(archive: zipfile.ZipFile, member: str, what: str) -> np.ndarray:
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
        except (ValueError, SyntaxError, EOFError) as error:
            raise FormatError(f"{what}: damaged header ({error})") from None
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or nbytes > archive.getinfo(member).file_size:
        raise FormatError(
            f"{what}: declares {dtype}{list(shape)}, which its {archive.getinfo(member).file_size} bytes cannot hold"
        )
    with archive.open(member) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FormatError(f"{what}: damaged ({error})") from None


def checked_array(name: str, array: Any, where: str) -> np.ndarray:
    """A copy of a user's array in native byte order. InputError where its dtype is none that a tensor can have."""
    array = np.array(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in NUMPY_DTYPE.values():
        raise InputError(f"{where}: array '{name}' has dtype {array.dtype}; tensors are {', '.join(sorted(NUMPY_DTYPE))}")
    return array
