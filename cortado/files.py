"""Reading of files that a user names, never more of them than they may hold: devices and pipes need not end."""

from __future__ import annotations

import os
from pathlib import Path

from cortado.errors import InputError


def read_file(path: str | os.PathLike[str], most: int, what: str) -> bytes:
    """The contents, of at most so many bytes. InputError where there are more, or the file cannot be read; what: "labels", for messages."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise InputError(f"{path}: more than {most:,} bytes, too much for {what}")
    return data
