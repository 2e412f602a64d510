"""What a user may ask of a compilation, checked once and then passed along whole."""

from __future__ import annotations

from dataclasses import dataclass

from cortado.errors import OptionError

DTYPES = ("float32", "float16", "bfloat16", "int8")
GOALS = ("speed", "size", "memory")


@dataclass(frozen=True)
class CompileOptions:
    """dtype: None keeps the file's types. optimize_for: "speed", "size" or "memory". threads: the number the plan is tuned for.

    separate_weights: ship them as a file of their own, which the program loads, instead of inside the library.
    keep_float: for int8, which of the nodes that could be int8 stay float: "slower" (those that int8 would make slower), "none", or names.
    tuning: sha256 of the file of measured choices that is used.
    step_limit: stop the graph rewrites after this many (None: no limit); with a numeric check this bisects a wrong answer to one rewrite.
    """

    name: str | None = None
    dtype: str | None = None
    io_dtype: str | None = None
    optimize_for: str = "speed"
    threads: int = 1
    strict: bool = False
    separate_weights: bool = False
    step_limit: int | None = None
    tuning: str | None = None
    keep_float: str | tuple[str, ...] = "slower"

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str):
            raise OptionError(f"name={self.name!r}: must be a string")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise OptionError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.optimize_for not in GOALS:
            raise OptionError(f"optimize_for {self.optimize_for!r} is not one of {', '.join(GOALS)}")
        if not isinstance(self.threads, int) or not 1 <= self.threads <= 1024:
            raise OptionError(f"threads={self.threads!r}: must be a number between 1 and 1024")
        if isinstance(self.keep_float, str) and self.keep_float not in ("slower", "none"):
            raise OptionError(f"keep_float={self.keep_float!r}: must be 'slower', 'none' or a list of names of nodes")
