"""The file of measured choices: per core and kernel the best one, and all that was measured, so that measuring can go on later."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cortado.compiler.kernels.choice import Choice, from_plain, to_plain
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning
from cortado.errors import FormatError
from cortado.files import read_file

SCHEMA = 1
MOST_BYTES = 256 << 20
CLEARLY = 0.985  # of the baseline's time: differences below that are the clock's
FILE_NAME = "tuning.json"
VARIABLE = "CORTADO_TUNING"
OFF = ("0", "off")


@dataclass
class Entry:
    """What is known of one kernel on one core.

    baseline: what the others are compared with, the cost model's choice when the entry was begun. microseconds: of the baseline.
    ratios: time of each measured choice by that of the baseline in the same turns. best: of them. finished: nothing is left to be tried.
    """

    baseline: Choice
    microseconds: float
    ratios: dict[Choice, float] = field(default_factory=dict)
    finished: bool = False

    @property
    def best(self) -> Choice:
        """The fastest; the baseline where nothing is clearly faster."""
        fastest = min(self.ratios, key=lambda choice: self.ratios[choice], default=self.baseline)
        return fastest if self.ratios.get(fastest, 1.0) < CLEARLY else self.baseline

    @property
    def gain(self) -> float:
        """The best one's time by the baseline's."""
        return 1.0 if self.best == self.baseline else self.ratios[self.best]


@dataclass
class Database:
    """cores: by `core_name`, the entries by `kernel_key`."""

    cores: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def entries(self, core: str) -> dict[str, Entry]:
        return self.cores.setdefault(core, {})

    def to_text(self) -> str:
        cores = {
            core: {key: _plain_entry(entry) for key, entry in sorted(entries.items())}
            for core, entries in sorted(self.cores.items())
        }
        return json.dumps({"schema": SCHEMA, "cores": cores}, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Replace the file at once: whoever reads it sees the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.to_text(), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def read_database(path: Path) -> Database:
    """The file's contents; an empty one where there is no file. Raises FormatError for any other file."""
    if not path.exists():
        return Database()
    return parse_database(read_file(path, MOST_BYTES, "measured choices"), str(path))


def parse_database(data: bytes, name: str) -> Database:
    """name: for messages. Raises FormatError."""
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise FormatError(f"{name}: schema {document['schema']!r} of measured choices; this version reads {SCHEMA}")
        cores = document["cores"]
        return Database({core: {key: _entry(plain) for key, plain in kernels.items()} for core, kernels in cores.items()})
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{name} is no file of measured choices, as `cortado tune` writes it: {error!r}") from error


def read_tuning(path: Path, target: Target) -> Tuning:
    """The best choices for a target. Raises FormatError; InputError where the file cannot be read."""
    data = read_file(path, MOST_BYTES, "measured choices")
    entries = parse_database(data, str(path)).entries(core_name(target))
    return best_of(entries, str(path), hashlib.sha256(data).hexdigest())


def best_of(entries: Mapping[str, Entry], name: str, sha256: str = "") -> Tuning:
    """The best choices. name: of their file. sha256: of the file, where a compilation is to say what it was made with."""
    return Tuning({key: entry.best for key, entry in entries.items()}, name, sha256)


def user_database() -> Path | None:
    """Where `cortado tune` keeps what it finds for host, and where compilations for host look: the file that CORTADO_TUNING names, else one in
    the user's cache folder. None where the variable says off.
    """
    named = os.environ.get(VARIABLE, "")
    if named.lower() in OFF:
        return None
    if named:
        return Path(named)
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("cortado", appauthor=False))
    return folder / FILE_NAME if folder.is_absolute() else None  # not absolute: a user without a home


def core_name(target: Target) -> str:
    """What choices depend on beside the kernel: the target's processor and features, for host this machine's processor and caches."""
    words = [target.cpu, *target.features]
    if target.name == "host":
        from cortado.backends.targets.host import processor

        words = ["host", processor(), *words, *(f"{memory.kind}={memory.nbytes}" for memory in target.memories)]
    return " ".join(words)


def _plain_entry(entry: Entry) -> dict[str, Any]:
    ratios = sorted(entry.ratios.items(), key=lambda item: item[1])
    return {
        "baseline": to_plain(entry.baseline),
        "microseconds": round(entry.microseconds, 3),
        "finished": entry.finished,
        "measured": [[to_plain(choice), round(ratio, 4)] for choice, ratio in ratios],
    }


def _entry(plain: Any) -> Entry:
    ratios = {from_plain(choice): float(ratio) for choice, ratio in plain["measured"]}
    return Entry(from_plain(plain["baseline"]), float(plain["microseconds"]), ratios, bool(plain["finished"]))
