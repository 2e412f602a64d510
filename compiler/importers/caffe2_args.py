"""An operator's arguments, read as strictly as Caffe2 reads them: the kind of a single value must be the one asked for."""

from __future__ import annotations

from cortado.errors import FormatError
from cortado.proto.caffe2 import Argument, Operator

_INT32 = range(-(2**31), 2**31)


class Args:
    """Arguments of one operator. Unknown ones are ignored, absent ones give the default."""

    def __init__(self, operator: Operator) -> None:
        self._args = operator.args

    def has(self, *names: str) -> bool:
        """Whether all of these arguments are there, of whatever kind."""
        return all(name in self._args for name in names)

    def integer(self, name: str, default: int) -> int:
        """A 32-bit whole number."""
        value = self.wide_integer(name, default)
        if value not in _INT32:
            raise FormatError(f"argument '{name}' is {value}, which does not fit 32 bits")
        return value

    def wide_integer(self, name: str, default: int) -> int:
        """A 64-bit whole number."""
        if name not in self._args:
            return default
        value = self._args[name].i
        if value is None:
            raise self._wrong_kind(name, "a whole number (i)")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return self.wide_integer(name, int(default)) != 0

    def number(self, name: str, default: float) -> float:
        """A float32 value. A whole number (i) in its place is an error, as in Caffe2."""
        if name not in self._args:
            return default
        value = self._args[name].f
        if value is None:
            raise self._wrong_kind(name, "a float (f)")
        return value

    def text(self, name: str, default: str) -> str:
        if name not in self._args:
            return default
        value = self._args[name].s
        if value is None:
            raise self._wrong_kind(name, "a string (s)")
        return value.decode("utf-8", "replace")

    def holds(self, name: str, kind: str) -> bool:
        """Whether a single value of the kind "f", "i" or "s" is there."""
        return name in self._args and getattr(self._args[name], kind) is not None

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of 32-bit whole numbers; empty where absent or of another kind."""
        values = self.wide_integers(name)
        for value in values:
            if value not in _INT32:
                raise FormatError(f"argument '{name}' holds {value}, which does not fit 32 bits")
        return values

    def wide_integers(self, name: str) -> tuple[int, ...]:
        return tuple(self._args[name].ints.tolist()) if name in self._args else ()

    def raw(self, name: str) -> Argument:
        """The argument as stored; an empty one where absent."""
        return self._args[name] if name in self._args else Argument()

    def _wrong_kind(self, name: str, wanted: str) -> FormatError:
        stored = self._args[name]
        singles = [
            kind for kind, value in (("f", stored.f), ("i", stored.i), ("s", stored.s), ("n", stored.n)) if value is not None
        ]
        lists = [
            kind
            for kind, values in (("floats", stored.floats), ("ints", stored.ints), ("strings", stored.strings))
            if len(values)
        ]
        found = ", ".join(singles + lists) or "nothing"
        return FormatError(f"argument '{name}' must be {wanted}; the file stores {found}")
