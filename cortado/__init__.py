"""cortado: a deployment compiler for neural networks.

The names below are loaded on first use, so that worker processes and `import cortado` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cortado.api import calibrate, compile, load, open
    from cortado.errors import (
        CalibrationError,
        CortadoError,
        FitError,
        FormatError,
        InputError,
        OptionError,
        ShapeError,
        StrictError,
        TargetError,
        UnsupportedError,
    )
    from cortado.model import Model

__version__ = "0.1.0"

_HOME = {
    "calibrate": "cortado.api",
    "load": "cortado.api",
    "compile": "cortado.api",
    "open": "cortado.api",
    "Model": "cortado.model",
    "CortadoError": "cortado.errors",
    "FormatError": "cortado.errors",
    "UnsupportedError": "cortado.errors",
    "ShapeError": "cortado.errors",
    "StrictError": "cortado.errors",
    "InputError": "cortado.errors",
    "OptionError": "cortado.errors",
    "TargetError": "cortado.errors",
    "FitError": "cortado.errors",
    "CalibrationError": "cortado.errors",
}

__all__ = [
    "CalibrationError",
    "CortadoError",
    "FitError",
    "FormatError",
    "InputError",
    "Model",
    "OptionError",
    "ShapeError",
    "StrictError",
    "TargetError",
    "UnsupportedError",
    "calibrate",
    "compile",
    "load",
    "open",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cortado' has no attribute {name!r}")
