"""Files that hold nets and tensors together: MetaNetDef, predictor databases in minidb form, TensorProtos.

Field names and numbers are the format's own (caffe2/proto/caffe2.proto, metanet.proto, caffe2/core/db.cc of PyTorch 1.4).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.errors import FormatError
from cortado.proto.caffe2 import DATA_TYPE_NUMBERS, DATA_TYPES, MESSAGES, NetDef, parse_net
from cortado.proto.schema import message_classes

META_KEY = "!!META_NET_DEF"
_CLASSES = MappingProxyType(
    message_classes(
        "caffe2",
        {
            **MESSAGES,
            "BlobsMap": {"key": (1, "bytes"), "value": (2, "repeated bytes")},
            "NetsMap": {"key": (1, "bytes"), "value": (2, "bytes")},  # the NetDef is read by its own reader
            "MetaNetDef": {"blobs": (1, "repeated BlobsMap"), "nets": (2, "repeated NetsMap")},
            "BlobProto": {
                "name": (1, "bytes"), "type": (2, "bytes"), "tensor": (3, "TensorProto"), "content": (4, "bytes"),
                "content_num_chunks": (6, "int32"), "content_chunk_id": (7, "int32"),
            },
        },
        {"DataType": DATA_TYPE_NUMBERS},
    )
)  # fmt: skip
_FIELDS = {
    "float32": "float_data", "float64": "double_data", "int64": "int64_data", "int32": "int32_data", "bool": "int32_data",
    "uint8": "int32_data", "int8": "int32_data", "uint16": "int32_data", "int16": "int32_data", "float16": "int32_data",
}  # fmt: skip


@dataclass(frozen=True)
class MetaNet:
    """nets, blobs: by the exporter's keys ("PREDICT_NET_TYPE", "INPUTS_BLOB_TYPE" ...)."""

    nets: Mapping[str, NetDef]
    blobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def parse_meta_net(data: bytes, where: str) -> MetaNet:
    """FormatError where the bytes are no MetaNetDef."""
    message = _message("MetaNetDef", data, where)
    try:
        blobs = {entry.key.decode(): tuple(value.decode() for value in entry.value) for entry in message.blobs}
        nets = {entry.key.decode(): parse_net(entry.value, f"{where}: net {entry.key.decode()}") for entry in message.nets}
    except UnicodeDecodeError:
        raise FormatError(f"{where}: a name in this MetaNetDef is not UTF-8; the file is damaged") from None
    return MetaNet(nets, blobs)


def parse_tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """A TensorProtos message as arrays by name. FormatError where one has no name, or twice the same, or its data do not fit."""
    found: dict[str, np.ndarray] = {}
    for number, tensor in enumerate(_message("TensorProtos", data, where).protos):
        name = tensor.name.decode("utf-8", "replace")
        if not name or name in found:
            raise FormatError(f"{where}: tensor {number} has {'no name' if not name else f'the name {name!r} of another one'}")
        found[name] = _array(tensor, f"{where}: tensor '{name}'")
    return found


def is_minidb(data: bytes) -> bool:
    """Whether the bytes are records of key and value from beginning to end, with a first key that could be a blob's name."""
    try:
        first = next(_records(data[: 1 << 16] if len(data) > 1 << 16 else data, len(data), ""))
    except (FormatError, StopIteration):
        return False
    return bool(first[0]) and all(32 <= byte < 127 for byte in first[0])


def parse_minidb(data: bytes, where: str) -> tuple[MetaNet | None, dict[str, np.ndarray]]:
    """A database that Caffe2's `Save` or its predictor exporter wrote: what it says of nets, and its tensors."""
    meta: MetaNet | None = None
    arrays: dict[str, np.ndarray] = {}
    for key, value in _records(data, len(data), where):
        blob = _message("BlobProto", value, where)
        name = blob.name.decode("utf-8", "replace") or key.decode("utf-8", "replace")
        if name == META_KEY:
            meta = parse_meta_net(bytes(blob.content), where)
        elif blob.HasField("tensor"):
            _put_chunk(arrays, name, blob.tensor, f"{where}: tensor '{name}'")
    return meta, arrays


def _records(data: bytes, size: int, where: str) -> Iterator[tuple[bytes, bytes]]:
    """size: of the whole file, of which data may be the beginning."""
    at = 0
    while at < len(data):
        if at + 8 > size:
            raise FormatError(f"{where}: the database is cut off or damaged")
        key, value = struct.unpack_from("<ii", data, at)
        if key < 1 or value < 0 or at + 8 + key + value > size or key > 1 << 16:
            raise FormatError(f"{where}: the database is cut off or damaged")
        yield data[at + 8 : at + 8 + key], data[at + 8 + key : at + 8 + key + value]
        at += 8 + key + value


def _put_chunk(arrays: dict[str, np.ndarray], name: str, tensor: Any, what: str) -> None:
    """Large tensors come in pieces, each with the range of elements that it holds."""
    shape = tuple(tensor.dims)
    if not tensor.HasField("segment"):
        arrays[name] = _array(tensor, what)
        return
    begin, end = tensor.segment.begin, tensor.segment.end
    if not 0 <= begin <= end <= math.prod(shape):
        raise FormatError(f"{what}: a piece of elements {begin} to {end} of {list(shape)}")
    values = _values(tensor, end - begin, what)
    whole = arrays.get(name)
    if whole is None:
        if math.prod(shape) * values.itemsize > 1 << 31:
            raise FormatError(f"{what}: declares {values.dtype}{list(shape)}, more than 2 GB")
        whole = arrays[name] = np.zeros(shape, values.dtype)
    if whole.shape != shape or whole.dtype != values.dtype:
        raise FormatError(f"{what}: its pieces have different shapes or types")
    whole.reshape(-1)[begin:end] = values


def _array(tensor: Any, what: str) -> np.ndarray:
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise FormatError(f"{what}: impossible shape {list(shape)}")
    return _values(tensor, math.prod(shape), what).reshape(shape)


def _values(tensor: Any, count: int, what: str) -> np.ndarray:
    dtype = DATA_TYPES.get(tensor.data_type)
    if dtype is None:
        raise FormatError(f"{what}: data type {tensor.data_type} is none that a network computes with")
    if tensor.raw_data:
        raw = bytes(tensor.raw_data)
        values = np.frombuffer(raw[: len(raw) - len(raw) % np.dtype(dtype).itemsize], np.dtype(dtype).newbyteorder("<"))
    elif tensor.byte_data:
        values = np.frombuffer(bytes(tensor.byte_data), np.uint8 if dtype != "int8" else np.int8)
    else:
        values = np.array(getattr(tensor, _FIELDS[dtype]))
        values = values.astype(np.uint16).view(np.float16) if dtype == "float16" else values
    if values.size != count:
        raise FormatError(f"{what}: {values.size} numbers where its shape {list(tensor.dims)} needs {count}")
    return values.astype(dtype)


def _message(kind: str, data: bytes, where: str) -> Any:
    message = _CLASSES[kind]()
    try:
        message.ParseFromString(data)
    except Exception as error:  # the library names no closed set
        raise FormatError(f"{where}: not a {kind}, or cut off or damaged ({type(error).__name__})") from None
    return message
