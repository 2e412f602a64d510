"""Every exception a user can meet. A leaf module: every layer may import it, it imports nothing.

Messages are in the user's words: which file, which node, what was found, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class CortadoError(Exception):
    """Base of all errors that a user's input, options or machine can cause."""


class FormatError(CortadoError):
    """The bytes are not a well-formed file of the format they claim to be."""


class UnsupportedError(CortadoError):
    """The file is well formed but holds something that cannot be compiled.

    nodes: one line per obstacle, all of them, in file order.
    """

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes: tuple[str, ...] = tuple(nodes)


class ShapeError(CortadoError):
    """Shapes or dtypes of a node's inputs do not fit its operator."""


class InputError(CortadoError):
    """Arrays given to `run`, or inputs named for `load`, do not match the model."""


class OptionError(CortadoError):
    """An option has an impossible value or contradicts another one."""


class TargetError(CortadoError):
    """The target is unknown, impossible, or cannot run here."""


class FitError(CortadoError):
    """The program does not fit the memories of its board or a given budget."""


class StrictError(CortadoError):
    """A strict compilation would have had to compute something in a slow generic way.

    nodes: one line for each.
    """

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes: tuple[str, ...] = tuple(nodes)


class CalibrationError(CortadoError):
    """Calibration samples are unusable."""
