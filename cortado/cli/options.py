"""Options that several commands share, gathered into one record per topic before a command sees them."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cortado.errors import OptionError
from cortado.preprocess import FILTERS, LAYOUTS, Preprocess

if TYPE_CHECKING:
    from cortado import Model
    from cortado.compiler.graph import Graph
    from cortado.compiler.quantize.record import CalibrationRecord

Command = TypeVar("Command", bound=Callable[..., Any])
Shape = tuple[int, ...]
CALIBRATION_KEYS = ("calibrate", "calibration_samples", "save_calibration", "resume_calibration", "calibration_method")
INT8_KEYS = ("dtype", *CALIBRATION_KEYS, "keep_float", "io_dtype")
COMPILE_KEYS = ("target", "name", *INT8_KEYS, "threads", "separate_weights", "strict", "tuning")
METHODS = ("extended", "min_max", "moving_average", "percentile", "entropy", "mean_square_error")


class InputShape(click.ParamType):
    """NAME=1,3,227,227 or NAME=1,3,227,227:dtype. Blob names may hold "=": the last one counts."""

    name = "NAME=SHAPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Shape, str | None]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).rpartition("=")
        sizes, _, dtype = text.partition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            shape = (-1,)
        if not equals or not name or any(size < 0 for size in shape):
            self.fail(f"{value!r}: expected a name and a shape, such as data=1,3,227,227", param, ctx)
        return name, shape, dtype or None


class TuningFile(click.Path):
    """A file, or "none" for False."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return False if value is False or value == "none" else super().convert(value, param, ctx)


@dataclass(frozen=True)
class ModelSource:
    """A model as the command line names it: a model file or folder with how to read it, or the folder of a compiled bundle."""

    path: Path
    init: Path | None
    weights: Path | None
    inputs: tuple[tuple[str, Shape, str | None], ...]
    outputs: tuple[str, ...]

    @property
    def is_bundle(self) -> bool:
        return (self.path / "manifest.json").is_file()

    def require_model(self) -> None:
        """OptionError for a bundle."""
        if self.is_bundle:
            raise OptionError(f"{self.path} is a compiled bundle; give the model file it was made from")

    def load(self) -> Graph:
        """The graph of the model file. OptionError for a bundle, which holds no graph any more."""
        import cortado

        self.require_model()
        shapes = {name: shape if dtype is None else (shape, dtype) for name, shape, dtype in self.inputs}
        if len(shapes) < len(self.inputs):
            names = [name for name, _, _ in self.inputs]
            twice = next(name for name in names if names.count(name) > 1)
            raise OptionError(f"--input gives {twice} more than once; each input has one shape")
        return cortado.load(self.path, init=self.init, inputs=shapes or None, outputs=self.outputs or None, weights=self.weights)


@dataclass(frozen=True)
class CompileArguments:
    """The options of a compilation, by the names that `cortado.compile` gives them."""

    given: dict[str, Any]

    def compile(self, source: ModelSource, preprocess: dict[str, Any]) -> Model:
        """preprocess: fields for the model's first input, where any are given."""
        return self.compile_graph(source.load(), source, preprocess)

    def compile_graph(self, graph: Graph, source: ModelSource, preprocess: dict[str, Any]) -> Model:
        """As `compile`, for the source's graph."""
        import cortado

        record = None
        if preprocess:
            if not graph.inputs:
                raise OptionError(f"{source.path} has no input that pictures could be prepared for")
            first = graph.inputs[0]
            record = Preprocess.for_input(first.name, first.types[0].shape, graph.layouts.get(first.name, ""), preprocess)
        return cortado.compile(graph, preprocess=record, **self.settings(graph, preprocess))

    def settings(self, graph: Graph, preprocess: dict[str, Any]) -> dict[str, Any]:
        """As keywords of `cortado.compile`."""
        given = {key: value for key, value in self.given.items() if key not in CALIBRATION_KEYS}
        if "keep_float" in given:
            names = given["keep_float"]
            given["keep_float"] = names[0] if names in (("slower",), ("none",)) else names
        if "calibrate" in self.given:
            given["calibration"] = self._calibration(graph, preprocess)
        return given

    def calibrated(self, graph: Graph, preprocess: dict[str, Any]) -> CompileArguments:
        """The same with the record that --calibrate leads to, for several compilations."""
        if "calibrate" not in self.given:
            return self
        return CompileArguments({**self.given, "calibrate": self._calibration(graph, preprocess)})

    def _calibration(self, graph: Graph, preprocess: dict[str, Any]) -> CalibrationRecord:
        """The saved record that --calibrate names, or one made of the samples there; kept where --save-calibration says."""
        import cortado
        from cortado.cli.console import stage_shower
        from cortado.compiler.quantize.record import CalibrationRecord, is_record, load_record
        from cortado.samples import read_samples

        path = self.given["calibrate"]
        if self.given.get("dtype") != "int8":
            raise OptionError("--calibrate is for --dtype int8")
        if isinstance(path, CalibrationRecord):
            return path
        if path.is_file() and is_record(path):
            if set(self.given) & {"resume_calibration", "calibration_method"}:
                raise OptionError(
                    f"{path} is a finished calibration; --resume-calibration and --calibration-method go with samples"
                )
            return load_record(path)
        before = load_record(self.given["resume_calibration"]) if "resume_calibration" in self.given else None
        samples = read_samples(path, graph, preprocess, 0, self.given.get("calibration_samples"))
        feeds = (sample.feeds for sample in samples)
        method = self.given.get("calibration_method")
        record = cortado.calibrate(graph, feeds, method=method, before=before, progress=stage_shower())
        if "save_calibration" in self.given:
            record.save(self.given["save_calibration"])
        return record

    def open_or_compile(self, source: ModelSource, preprocess: dict[str, Any] | None = None) -> Model:
        """The saved bundle, or the model file compiled now with these options."""
        import cortado

        if not source.is_bundle:
            return self.compile(source, preprocess or {})
        if preprocess or set(self.given) - {"threads"} or source.inputs or source.outputs or source.init or source.weights:
            raise OptionError(
                f"{source.path} is compiled already: it takes no --init, --input, --target or other compile options"
            )
        return cortado.open(source.path)


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Warnings of the compiler as lines on stderr, without Python's file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                click.echo(f"cortado: warning: {warning.message}", err=True)


def gathered(name: str, options: list[Callable[[Command], Command]], make: Callable[..., Any], keys: tuple[str, ...]) -> Any:
    """A decorator: adds the options and hands their values to the command as one argument `name`, made by `make`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            own = {key: values.pop(key) for key in keys}
            return command(**{name: make(**own)}, **values)

        decorated: Any = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def check_writable(folder: Path) -> None:
    """OptionError where files cannot be written into a folder that may have to be made first: known before long work, not after."""
    present = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not present.is_dir():
        raise OptionError(f"{folder}: cannot be made, since {present} is no folder")
    if not os.access(present, os.W_OK | os.X_OK):
        raise OptionError(f"{folder}: cannot be written: no permission to write into {present}")


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Argument SOURCE and how to read it, as `source: ModelSource`."""
    options: list[Callable[[Any], Any]] = [
        click.argument("path", metavar="MODEL", type=click.Path(exists=True, path_type=Path)),
        click.option("--init", type=FILE, help="The weights of a predict net: init_net.pb, or an .npz of blobs."),
        click.option("--weights", type=FILE, hidden=True),  # of formats that cannot be read yet: refused in words
        click.option(
            "--input",
            "inputs",
            type=InputShape(),
            multiple=True,
            help="Shape of an input, as data=1,3,227,227; repeat for more inputs.",
        ),
        click.option(
            "--blob", "outputs", metavar="NAME", multiple=True, help="Produce this blob instead of the model's own outputs."
        ),
    ]
    return gathered("source", options, ModelSource, ("path", "init", "weights", "inputs", "outputs"))(command)


def compile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `cortado.compile` can be told, as `arguments: CompileArguments`; only what was given."""
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--target",
            metavar="TARGET",
            help="Processor, features and system: host, x86-64-v3, cortex-m4 ... See `cortado targets`.",
        ),
        click.option("--name", metavar="NAME", help="Name of the library and prefix of its symbols; else the net's name."),
        *_int8_options(),
        click.option(
            "--threads", type=click.IntRange(1), help="Threads to plan for, and to run with; a bundle runs with any number."
        ),
        click.option(
            "--separate-weights", is_flag=True, default=None, help="Weights in a file of their own, not in the library."
        ),
        click.option(
            "--strict",
            is_flag=True,
            default=None,
            help="Fail (exit status 1) if a node is computed in a slow generic way; names all.",
        ),
        click.option(
            "--tuning",
            type=TuningFile(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE|none",
            help="Measured choices that `cortado tune` kept; else, for host alone, the user's own file.",
        ),
    ]

    return gathered("arguments", options, _arguments, COMPILE_KEYS)(command)


def int8_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of `compile_options` that say what of a network is int8, as `arguments: CompileArguments`."""
    return gathered("arguments", _int8_options(), _arguments, INT8_KEYS)(command)


def _arguments(**values: Any) -> CompileArguments:
    return CompileArguments({key: value for key, value in values.items() if value not in (None, ())})


def _int8_options() -> list[Callable[[Any], Any]]:
    return [
        click.option("--dtype", metavar="DTYPE", help="float32 or int8; else the model's own types."),
        click.option(
            "--calibrate",
            type=click.Path(exists=True, path_type=Path),
            metavar="DIR|NPZ",
            help="For int8: about 32 typical inputs (pictures, .npy, .npz), or a saved calibration.",
        ),
        click.option(
            "--calibration-samples", type=click.IntRange(1), metavar="N", help="Take the first N of them only; else all."
        ),
        click.option(
            "--save-calibration",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE.npz",
            help="Keep what was observed.",
        ),
        click.option("--resume-calibration", type=FILE, metavar="FILE.npz", help="Go on from what was kept of earlier inputs."),
        click.option(
            "--calibration-method", type=click.Choice(METHODS), help="How ranges are found; else by the error at the outputs."
        ),
        click.option(
            "--keep-float",
            multiple=True,
            metavar="NAME|slower|none",
            help="For int8: a node that stays float32 (repeat for more), none, or what int8 would make slower (the default).",
        ),
        click.option(
            "--io-dtype",
            type=click.Choice(["float32", "int8", "uint8"]),
            help="Inputs and outputs of an int8 model; else float32.",
        ),
    ]


def preprocess_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How pictures become inputs, as `preprocess: dict` of only what was given (fields of `Preprocess`, and scale)."""
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--resize", metavar="SIZE", help="Short side (256), or height x width (240x320); else the model's input size."
        ),
        click.option("--crop", metavar="SIZE", help="Cut out the centre: 227 or 240x320."),
        click.option(
            "--channels", type=click.Choice(["RGB", "BGR", "GRAY"], case_sensitive=False), help="Order of colours; else RGB."
        ),
        click.option("--range", "range_", metavar="TOP", help="What white is before mean and std: 255 (the default) or 1."),
        click.option("--mean", metavar="M,...", help="Subtract, for all channels or one per channel: 104,117,123."),
        click.option("--std", metavar="S,...", help="Then divide by."),
        click.option("--scale", metavar="F,...", help="Instead of --std: multiply by, 0.017 or 1/58.8."),
        click.option("--layout", type=click.Choice(LAYOUTS, case_sensitive=False), help="Order of axes; else the model's."),
        click.option("--filter", "filter_", type=click.Choice(FILTERS), help="Of the resize; else bilinear."),
    ]
    keys = ("resize", "crop", "channels", "range_", "mean", "std", "scale", "layout", "filter_")

    def make(**values: Any) -> dict[str, Any]:
        return {key.rstrip("_"): value for key, value in values.items() if value is not None}

    return gathered("preprocess", options, make, keys)(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
