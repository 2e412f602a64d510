"""What a command shows: the answer on stdout, progress and errors on stderr, with --json one document on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import click


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Tell on stderr that `what` goes on: a spinner on a terminal, else a line."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield
    else:
        click.echo(what, err=True)
        yield


@contextlib.contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Takes what goes on, again and again: one line on stderr that changes on a terminal, else a line for each."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update


def stage_shower() -> Callable[[str, int], None]:
    """Takes a stage and a count; on a terminal they are one line on stderr that changes, elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda stage, count: None
    return lambda stage, count: click.echo(f"\r{stage} {count} ", nl=False, err=True)


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; a column of numbers only is flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    raw = list(zip(header, *cells, strict=True))
    numeric = [bool(cells) and all(is_number(cell) for cell in column[1:]) for column in raw]
    widths = [max(map(len, column)) for column in raw]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), *(line(row) for row in cells)])


def is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "", 1).isdigit()


def size(nbytes: int) -> str:
    """Bytes as people read them: 1,234 B under 10 KB, else KB or MB of 1024."""
    if nbytes < 10 * 1024:
        return f"{nbytes:,} B"
    if nbytes < 10 * 1024**2:
        return f"{nbytes / 1024:,.1f} KB"
    return f"{nbytes / 1024**2:,.1f} MB"


def can_show(stream: TextIO, characters: str) -> bool:
    """Whether the stream's encoding has the characters."""
    try:
        characters.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
