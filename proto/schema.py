"""Message classes from a schema written as plain data, in a private descriptor pool.

A private pool lets this package live in one process with a framework that registers the same message names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Message -> field -> (number, "[repeated |required ]type[ packed]"); a type that is no scalar names a message or an enum.
Messages = Mapping[str, Mapping[str, tuple[int, str]]]
Enums = Mapping[str, Mapping[str, int]]

_LABELS = {"optional": 1, "required": 2, "repeated": 3}
_SCALARS = {"double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}
_MESSAGE, _ENUM = 11, 14


def message_classes(package: str, messages: Messages, enums: Enums | None = None) -> dict[str, Any]:
    """{message name: class of the protobuf library}, proto2 rules."""
    enums = enums or {}
    file: Any = descriptor_pb2.FileDescriptorProto(name=f"cortado/{package}.proto", package=package, syntax="proto2")
    for enum_name, members in enums.items():
        enum = file.enum_type.add(name=enum_name)
        for member, number in members.items():
            enum.value.add(name=member, number=number)
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, spec) in fields.items():
            words = spec.split()
            label = words.pop(0) if words[0] in _LABELS else "optional"
            field = message.field.add(name=field_name, number=number, label=_LABELS[label])
            if words[0] in _SCALARS:
                field.type = _SCALARS[words[0]]
            else:
                field.type = _ENUM if words[0] in enums else _MESSAGE
                field.type_name = f".{package}.{words[0]}"
            if words[1:] == ["packed"]:
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: _class_of(pool.FindMessageTypeByName(f"{package}.{name}"), pool) for name in messages}


def _class_of(descriptor: Any, pool: Any) -> Any:
    factory: Any = message_factory
    if hasattr(factory, "GetMessageClass"):
        return factory.GetMessageClass(descriptor)
    return factory.MessageFactory(pool).GetPrototype(descriptor)  # protobuf 4.21 has only this older spelling
