"""manifest.json: what a bundle is, for people and programs. Its text is a function of its contents; it holds no time and no path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from cortado.compiler.types import NUMPY_DTYPE, TensorInfo
from cortado.errors import FormatError
from cortado.runtime.names import blob_identifiers

FILE_NAME = "manifest.json"
SCHEMA = 3  # goes up whenever a field of any record below, or of TensorInfo, comes, goes or changes its meaning
PLAIN = ("name", "model_hash", "versions", "source", "options", "preprocess", "quantization", "weights")


@dataclass(frozen=True)
class StepInfo:
    """name: of the graph node; origin: the source's nodes; macs: multiply-adds; parts: for NAME_run_threads; shape: of the node's output.

    kernel: name of the driver: function NAME_kernel(args..., begin, end) does the tasks begin to end - 1. args: what each pointer points
    to, as "base+64": bytes from the aligned start of the arena (base), behind the header of the weights (weights), or from a pointer that
    NAME_run is given (in0, out1). guards: places of truth values (one byte) that must be true, after "!" false, for the step to run.
    count: the place of the number of rows (int32) that the step makes, of `rows` at most: it then does only the first of `groups` equal
    runs of its tasks; "" where it always does all.
    """

    name: str
    op: str
    origin: tuple[str, ...]
    kernel: str
    macs: int
    tasks: int
    parts: int
    shape: tuple[int, ...]
    args: tuple[str, ...]
    guards: tuple[str, ...] = ()
    count: str = ""
    rows: int = 0
    groups: int = 0


@dataclass(frozen=True)
class LevelInfo:
    """Code for one level of the processor family, which NAME_init chooses among. name: of the level as a target. prefix: of its symbols.

    serves: names of the levels that it is for: those whose kernels would be the same. code: bytes of its functions and their constants.
    weights: bytes that it reads; those of levels overlap. arena: bytes that it needs.
    """

    name: str
    features: tuple[str, ...]
    serves: tuple[str, ...]
    prefix: str
    code: int
    weights: int
    arena: int
    steps: tuple[StepInfo, ...]


@dataclass(frozen=True)
class Sizes:
    """Bytes. code: functions and their constants. weights: the blob with its header. arena: header, buffers, slack. stack: upper bound."""

    code: int
    weights: int
    arena: int
    stack: int


@dataclass(frozen=True)
class TargetInfo:
    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class FileInfo:
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """name: the C identifier. model_hash: 16 hexadecimal digits, also in the header and the weights.

    source: what was compiled: "name", and "sha256" of the graph as loaded. options: as `compile` took them. preprocess: fields of the
    record, if one was given. quantization: for dtype int8, the calibration record's hash, what was chosen, and range, scale and error of
    every tensor. weights: "linked" or "separate". levels: where the code is for several, the least demanding first; `steps` are the last's.
    """

    name: str
    model_hash: str
    versions: Mapping[str, str]
    source: Mapping[str, str]
    options: Mapping[str, Any]
    preprocess: Mapping[str, Any] | None
    quantization: Mapping[str, Any] | None
    target: TargetInfo
    weights: str
    inputs: tuple[tuple[str, TensorInfo], ...]
    outputs: tuple[tuple[str, TensorInfo], ...]
    sizes: Sizes
    steps: tuple[StepInfo, ...]
    files: Mapping[str, FileInfo]
    levels: tuple[LevelInfo, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what the file holds, but for its checksum."""
        plain: dict[str, Any] = {"schema": SCHEMA}
        for field in fields(self):
            plain[field.name] = getattr(self, field.name)
        for side in ("inputs", "outputs"):
            plain[side] = _tensors(getattr(self, side))
        plain["target"] = asdict(self.target)
        plain["sizes"] = asdict(self.sizes)
        plain["steps"] = [asdict(step) for step in self.steps]
        plain["levels"] = [asdict(level) for level in self.levels]
        plain["files"] = {name: asdict(info) for name, info in sorted(self.files.items())}
        return plain

    def to_text(self) -> str:
        plain = self.to_dict()
        return json.dumps({**plain, "checksum": _checksum(plain)}, indent=1, allow_nan=False) + "\n"


def file_info(data: bytes) -> FileInfo:
    return FileInfo(len(data), hashlib.sha256(data).hexdigest())


def read_manifest(text: bytes, where: str) -> Manifest:
    """Raises FormatError, which names `where`, unless it is an undamaged manifest of a schema that this version reads."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where} is not JSON: {error}") from error
    if not isinstance(plain, dict) or "schema" not in plain:
        raise FormatError(f"{where} is not the manifest of a cortado bundle")
    if plain["schema"] != SCHEMA:
        raise FormatError(_other_schema(plain, where))
    checksum = plain.pop("checksum", None)
    if checksum != _checksum(plain):
        raise FormatError(f"{where} is damaged or was edited: its checksum does not fit")
    try:
        return _from_dict(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{where} is not a manifest: {type(error).__name__}: {error}") from error


def _other_schema(plain: Mapping[str, Any], where: str) -> str:
    found, versions = plain["schema"], plain.get("versions")
    maker = versions.get("cortado") if isinstance(versions, Mapping) else None
    written = f"{where} was written by {f'cortado {maker}' if maker else 'another version of cortado'} and has schema {found}"
    needed = f"this version reads schema {SCHEMA}"
    if isinstance(found, int) and found > SCHEMA:
        return f"{written}; {needed}. Install a newer cortado, or compile the model again with this one"
    return f"{written}; {needed}. Compile the model again"


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _tensors(tensors: Sequence[tuple[str, TensorInfo]]) -> list[dict[str, Any]]:
    identifiers = blob_identifiers([name for name, _ in tensors])
    return [
        {"name": name, "identifier": identifier, **asdict(info)}
        for (name, info), identifier in zip(tensors, identifiers, strict=True)
    ]


def _from_dict(plain: Mapping[str, Any]) -> Manifest:
    return Manifest(
        **{key: plain[key] for key in PLAIN},
        target=TargetInfo(**{**plain["target"], "features": tuple(plain["target"]["features"])}),
        inputs=_tensors_from(plain["inputs"]),
        outputs=_tensors_from(plain["outputs"]),
        sizes=Sizes(**plain["sizes"]),
        steps=tuple(_step_from(step) for step in plain["steps"]),
        files={name: FileInfo(**info) for name, info in plain["files"].items()},
        levels=tuple(_level_from(level) for level in plain["levels"]),
    )


def _level_from(row: Mapping[str, Any]) -> LevelInfo:
    steps = tuple(_step_from(step) for step in row["steps"])
    return LevelInfo(**{**row, "features": tuple(row["features"]), "serves": tuple(row["serves"]), "steps": steps})


def _step_from(row: Mapping[str, Any]) -> StepInfo:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return StepInfo(**fields)


def _tensors_from(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, TensorInfo], ...]:
    found = []
    for row in rows:
        if row["dtype"] not in NUMPY_DTYPE:
            raise ValueError(f"dtype {row['dtype']!r}")
        info = {key: row[key] for key in ("dtype", "layout", "scale", "zero_point", "count")}
        found.append((row["name"], TensorInfo(tuple(row["shape"]), **info)))
    return tuple(found)
