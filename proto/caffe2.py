"""Caffe2's files: the schema, and readers and writers between bytes, text and plain frozen records.

Field names and numbers are the format's own (caffe2/proto/caffe2.proto, Caffe2 as in PyTorch 1.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf import text_format

from cortado.errors import FormatError
from cortado.proto.schema import message_classes

# TensorProto.DataType: number -> the library's dtype name. STRING (4) has none.
DATA_TYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "float32", 2: "int32", 3: "uint8", 5: "bool", 6: "uint8", 7: "int8", 8: "uint16", 9: "int16", 10: "int64",
        12: "float16", 13: "float64",
    }
)  # fmt: skip
DATA_TYPE_NUMBERS: Mapping[str, int] = MappingProxyType(
    {
        "UNDEFINED": 0, "FLOAT": 1, "INT32": 2, "BYTE": 3, "STRING": 4, "BOOL": 5, "UINT8": 6, "INT8": 7, "UINT16": 8,
        "INT16": 9, "INT64": 10, "FLOAT16": 12, "DOUBLE": 13,
    }
)  # fmt: skip

# Names are declared as bytes so that a file whose names are not UTF-8 is reported here, not by the protobuf library.
MESSAGES = {
    "NetDef": {
        "name": (1, "bytes"), "op": (2, "repeated OperatorDef"), "type": (3, "bytes"), "num_workers": (4, "int32"),
        "device_option": (5, "DeviceOption"), "arg": (6, "repeated Argument"), "external_input": (7, "repeated bytes"),
        "external_output": (8, "repeated bytes"),
    },
    "OperatorDef": {
        "input": (1, "repeated bytes"), "output": (2, "repeated bytes"), "name": (3, "bytes"), "type": (4, "bytes"),
        "arg": (5, "repeated Argument"), "device_option": (6, "DeviceOption"), "engine": (7, "bytes"),
        "control_input": (8, "repeated bytes"), "is_gradient_op": (9, "bool"), "debug_info": (10, "bytes"),
        "domain": (11, "bytes"),
    },
    "Argument": {
        "name": (1, "bytes"), "f": (2, "float"), "i": (3, "int64"), "s": (4, "bytes"), "floats": (5, "repeated float"),
        "ints": (6, "repeated int64"), "strings": (7, "repeated bytes"), "n": (8, "NetDef"), "nets": (9, "repeated NetDef"),
        "t": (10, "TensorProto"), "tensors": (11, "repeated TensorProto"), "qtensors": (12, "repeated QTensorProto"),
    },
    "DeviceOption": {
        "device_type": (1, "int32"), "device_id": (2, "int32"), "random_seed": (3, "uint32"), "node_name": (4, "bytes"),
        "numa_node_id": (5, "int32"), "extra_info": (6, "repeated bytes"),
    },
    "TensorProto": {
        "dims": (1, "repeated int64"), "data_type": (2, "DataType"), "float_data": (3, "repeated float packed"),
        "int32_data": (4, "repeated int32 packed"), "byte_data": (5, "bytes"), "string_data": (6, "repeated bytes"),
        "name": (7, "bytes"), "device_detail": (8, "DeviceOption"), "double_data": (9, "repeated double packed"),
        "int64_data": (10, "repeated int64 packed"), "segment": (11, "Segment"), "storage_type": (12, "uint32"),
        "raw_data": (13, "bytes"),
    },
    "Segment": {"begin": (1, "int64"), "end": (2, "int64")},
    "TensorProtos": {"protos": (1, "repeated TensorProto")},
    "QTensorProto": {
        "dims": (1, "repeated int64"), "precision": (2, "int32"), "scale": (3, "double"), "bias": (4, "double"),
        "is_signed": (5, "bool"), "data": (6, "repeated int32 packed"), "name": (7, "bytes"), "data_type": (8, "DataType"),
        "scales": (9, "repeated double"), "biases": (10, "repeated double"), "axis": (11, "int32"),
        "is_multiparam": (12, "bool"),
    },
}  # fmt: skip
_CLASSES = MappingProxyType(message_classes("caffe2", MESSAGES, {"DataType": DATA_TYPE_NUMBERS}))


@dataclass(frozen=True, eq=False)
class Argument:
    """A named argument. Single values are None where absent; floats is float32[n], ints int64[n]."""

    f: float | None = None
    i: int | None = None
    s: bytes | None = None
    n: NetDef | None = None
    floats: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    ints: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    strings: tuple[bytes, ...] = ()
    nets: tuple[NetDef, ...] = ()


@dataclass(frozen=True)
class DeviceOption:
    """device_type: 0 CPU, 1 CUDA, ... as the format numbers them."""

    device_type: int = 0
    device_id: int = 0
    random_seed: int = 0
    node_name: str = ""


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of a net. args: by name; of a repeated name the last one counts, as in Caffe2."""

    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    args: Mapping[str, Argument] = field(default_factory=dict)
    name: str = ""
    engine: str = ""
    device_option: DeviceOption | None = None
    control_inputs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the user knows it by: its name, else its type and first output."""
        return self.name or f"{self.type}:{self.outputs[0] if self.outputs else ''}"


@dataclass(frozen=True, eq=False)
class NetDef:
    """A net: operators in execution order on named blobs."""

    name: str = ""
    operators: tuple[Operator, ...] = ()
    external_inputs: tuple[str, ...] = ()
    external_outputs: tuple[str, ...] = ()
    type: str = ""
    num_workers: int = 0
    device_option: DeviceOption | None = None
    args: Mapping[str, Argument] = field(default_factory=dict)


def parse_net(data: bytes, where: str) -> NetDef:
    """A binary NetDef. where: the file's name, for messages. FormatError where the bytes are none."""
    message = _CLASSES["NetDef"]()
    return _parsed(lambda: message.ParseFromString(data), message, where, "binary")


def parse_net_text(text: str, where: str) -> NetDef:
    """A NetDef in protobuf's text form (.pbtxt). Fields that this schema does not know are skipped, as in the binary form."""
    message = _CLASSES["NetDef"]()
    return _parsed(lambda: text_format.Parse(text, message, allow_unknown_field=True), message, where, "text")


def serialize_net(net: NetDef) -> bytes:
    """The binary form; the same bytes for the same net on every machine."""
    return _net_message(net).SerializeToString(deterministic=True)


def format_net(net: NetDef) -> str:
    """The text form."""
    return text_format.MessageToString(_net_message(net))


def argument(value: Any) -> Argument:
    """An argument stored the way its Python type asks for: int or bool, float, str or bytes, NetDef, or a sequence of one kind."""
    if isinstance(value, (bool, int, np.integer)):
        return Argument(i=int(value))
    if isinstance(value, (float, np.floating)):
        return Argument(f=float(np.float32(value)))
    if isinstance(value, (str, bytes)):
        return Argument(s=_encode(value))
    if isinstance(value, NetDef):
        return Argument(n=value)
    items = list(value)
    if items and isinstance(items[0], (str, bytes)):
        return Argument(strings=tuple(_encode(v) for v in items))
    array = np.asarray(items)
    if array.dtype.kind == "f":
        return Argument(floats=array.astype(np.float32))
    return Argument(ints=array.astype(np.int64))


def operator(kind: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", engine: str = "", **args: Any) -> Operator:
    """An operator from plain values, for programs that write nets."""
    named = {key: value if isinstance(value, Argument) else argument(value) for key, value in args.items()}
    return Operator(kind, tuple(inputs), tuple(outputs), named, name, engine)


# --- from messages ---


def _parsed(parse: Callable[[], object], message: Any, where: str, form: str) -> NetDef:
    try:
        parse()
    except Exception as error:  # the library names no closed set: DecodeError, ParseError, ValueError, RecursionError ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FormatError(
            f"{where}: not a Caffe2 NetDef in {form} form, or cut off or damaged ({reason}). Check that the whole file was copied"
        ) from None
    try:
        return _net(message)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: a name in this NetDef is not UTF-8 ({error.object[:40]!r}); the file is damaged") from None
    except RecursionError:
        raise FormatError(f"{where}: nets nested too deeply in arguments") from None


def _net(message: Any) -> NetDef:
    return NetDef(
        name=message.name.decode(),
        operators=tuple(_operator(op) for op in message.op),
        external_inputs=_names(message.external_input),
        external_outputs=_names(message.external_output),
        type=message.type.decode(),
        num_workers=message.num_workers,
        device_option=_device(message),
        args=_arguments(message.arg),
    )


def _operator(message: Any) -> Operator:
    return Operator(
        type=message.type.decode(),
        inputs=_names(message.input),
        outputs=_names(message.output),
        args=_arguments(message.arg),
        name=message.name.decode(),
        engine=message.engine.decode(),
        device_option=_device(message),
        control_inputs=_names(message.control_input),
    )


def _names(values: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)


def _arguments(messages: Iterable[Any]) -> Mapping[str, Argument]:
    return MappingProxyType({message.name.decode(): _argument(message) for message in messages})


def _argument(message: Any) -> Argument:
    def single(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    return Argument(
        f=single("f"),
        i=single("i"),
        s=single("s"),
        n=_net(message.n) if message.HasField("n") else None,
        floats=_array(message.floats, np.float32),
        ints=_array(message.ints, np.int64),
        strings=tuple(message.strings),
        nets=tuple(_net(net) for net in message.nets),
    )


def _array(values: Any, dtype: type) -> np.ndarray:
    """A repeated field as an array. Protobuf 7 hands numpy the whole buffer; the older ones are read fastest one by one."""
    array: np.ndarray = np.array(values, dtype) if hasattr(values, "__array__") else np.fromiter(values, dtype, len(values))
    array.flags.writeable = False
    return array


def _device(message: Any) -> DeviceOption | None:
    if not message.HasField("device_option"):
        return None
    option = message.device_option
    return DeviceOption(option.device_type, option.device_id, option.random_seed, option.node_name.decode())


# --- to messages ---


def _encode(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _net_message(net: NetDef) -> Any:
    message = _CLASSES["NetDef"]()
    _fill_net(message, net)
    return message


def _fill_net(message: Any, net: NetDef) -> None:
    _set(message, name=net.name.encode(), type=net.type.encode(), num_workers=net.num_workers)
    for op in net.operators:
        _fill_operator(message.op.add(), op)
    message.external_input.extend(name.encode() for name in net.external_inputs)
    message.external_output.extend(name.encode() for name in net.external_outputs)
    _fill_device(message, net.device_option)
    _fill_arguments(message, net.args)


def _fill_operator(message: Any, op: Operator) -> None:
    _set(message, type=op.type.encode(), name=op.name.encode(), engine=op.engine.encode())
    message.input.extend(name.encode() for name in op.inputs)
    message.output.extend(name.encode() for name in op.outputs)
    message.control_input.extend(name.encode() for name in op.control_inputs)
    _fill_device(message, op.device_option)
    _fill_arguments(message, op.args)


def _fill_device(message: Any, device: DeviceOption | None) -> None:
    if device is not None:
        message.device_option.SetInParent()
        _set(
            message.device_option, device_type=device.device_type, device_id=device.device_id, random_seed=device.random_seed,
            node_name=device.node_name.encode(),
        )  # fmt: skip


def _fill_arguments(message: Any, args: Mapping[str, Argument]) -> None:
    for name, value in args.items():
        to = message.arg.add(name=name.encode())
        for key, single in (("f", value.f), ("i", value.i), ("s", value.s)):
            if single is not None:
                setattr(to, key, single)
        to.floats.extend(value.floats.tolist())
        to.ints.extend(value.ints.tolist())
        to.strings.extend(value.strings)
        if value.n is not None:
            to.n.SetInParent()
            _fill_net(to.n, value.n)
        for net in value.nets:
            _fill_net(to.nets.add(), net)


def _set(message: Any, **fields: Any) -> None:
    """Set the fields that differ from the format's defaults."""
    for name, value in fields.items():
        if value:
            setattr(message, name, value)
