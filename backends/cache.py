"""Generated code kept on disk between compilations, found by a hash of everything that decides its bytes.

Entries are files of one folder, named by their key. A new one gets its name when it is whole, so any number of processes may use the
folder at once. An entry begins with a hash of the rest; one that does not fit is thrown away, and its code generated again. When the
folder holds more than LIMIT bytes, those entries go whose last use is longest ago.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

LIMIT = 256 << 20  # bytes of all entries
KEPT = 0.8  # of LIMIT remains after throwing out, so that it does not happen at every write
VARIABLE = "CORTADO_CACHE"
OFF = ("0", "off")
_HASH_BYTES = 32
_RUN = 1 << 16  # bytes: zeros beyond are stored as their number; room for weights is one such run
_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9]+\.[0-9]+\.tmp)?")  # entries and unfinished ones; the folder may hold other files


@dataclass(frozen=True)
class Entry:
    """output: what the code generator gave. messages: what it printed."""

    output: bytes
    messages: str


def default_cache() -> Cache | None:
    """The cache in the folder that CORTADO_CACHE names, else in the user's cache folder; None where the variable says off."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in OFF:
        return None
    if named:
        return Cache(Path(named))
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("cortado", appauthor=False))
    return Cache(folder / "code") if folder.is_absolute() else None  # not absolute: a user without a home


class Cache:
    """A folder of entries; made when it is first written to. Where it cannot be read or written, nothing is found or kept."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder, self._limit = folder, limit

    def get(self, key: str) -> Entry | None:
        path = self._folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        entry = _decoded(data)
        with contextlib.suppress(OSError):
            if entry is None:
                path.unlink()
            else:
                os.utime(path)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        temporary = self._folder / f"{key}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_encoded(entry))
            os.replace(temporary, self._folder / key)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def trim(self) -> None:
        """Throw out entries until the rest is within the limit. What other processes remove meanwhile is no error."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as items:
            for item in items:
                with contextlib.suppress(OSError):
                    if _NAME.fullmatch(item.name):
                        found.append((item.stat().st_mtime_ns, item.stat().st_size, item.path))
        total = sum(size for _, size, _ in found)
        if total <= self._limit:
            return
        for _, size, path in sorted(found):
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
            if total <= KEPT * self._limit:
                return


def _encoded(entry: Entry) -> bytes:
    """Hash, then lengths of messages, of the bytes before the run of zeros, and of the run, then messages and the other bytes."""
    output, messages = entry.output, entry.messages.encode()
    start = output.find(bytes(_RUN))
    zeros = 0 if start < 0 else len(output) - start - len(output[start:].lstrip(b"\0"))
    start = len(output) if start < 0 else start
    rest = struct.pack("<QQQ", len(messages), start, zeros) + messages + output[:start] + output[start + zeros :]
    return hashlib.sha256(rest).digest() + rest


def _decoded(data: bytes) -> Entry | None:
    if len(data) < _HASH_BYTES + 24 or hashlib.sha256(memoryview(data)[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
        return None
    length, start, zeros = struct.unpack_from("<QQQ", data, _HASH_BYTES)
    at = _HASH_BYTES + 24 + length
    output = b"".join((data[at : at + start], bytes(zeros), data[at + start :])) if zeros else data[at:]
    return Entry(output, data[at - length : at].decode())
