"""`cortado verify`: a converted network against its float32 form, on the user's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cortado.cli.console import print_json, progress
from cortado.cli.options import (
    FILE,
    CompileArguments,
    ModelSource,
    compile_options,
    json_option,
    preprocess_options,
    source_options,
    warnings_shown,
)
from cortado.errors import OptionError
from cortado.int8_report import int8_lines

CALIBRATION = 32  # samples, where no others are given


@click.command("verify")
@source_options
@compile_options
@preprocess_options
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    metavar="DIR",
    help="Pictures, .npy, .npz or TensorProtos (.pb) files.",
)
@click.option("--labels", type=FILE, help="CSV file with the columns file and class: what the best class should be.")
@click.option("--label-offset", type=int, default=0, help="Number of the network's output that class 0 is; else 0.")
@click.option(
    "--agreement",
    type=click.FloatRange(0, 100),
    default=90.0,
    show_default=True,
    help="Percent of samples whose class must stay the same.",
)
@json_option
def verify_command(
    source: ModelSource,
    arguments: CompileArguments,
    preprocess: dict[str, Any],
    samples: Path,
    labels: Path | None,
    label_offset: int,
    agreement: float,
    as_json: bool,
) -> int:
    """Compare MODEL, converted as --dtype says, with its float32 form: class agreement, signal to noise, accuracy.

    With int8 also range, scale, times and error of every layer. Without --calibrate the first 32 samples by name calibrate and the
    others are compared; up to 32 samples do both. Exit status 1 where the class changes too often.

    \b
    Example: what int8 costs on your own pictures
      cortado verify squeezenet/ --input data=1,3,227,227 --dtype int8 --samples pictures --labels classes.csv
    """
    import cortado
    from cortado.samples import read_classes, read_samples
    from cortado.verification import compare

    if arguments.given.get("dtype") is None:
        raise OptionError("say what to compare with float32: --dtype int8")
    graph = source.load()
    first = 0
    if arguments.given["dtype"] == "int8" and "calibrate" not in arguments.given:
        more = next(read_samples(samples, graph, preprocess, CALIBRATION), None) is not None
        first = CALIBRATION if more else 0
        arguments = CompileArguments({**arguments.given, "calibrate": samples, "calibration_samples": CALIBRATION})
    with progress(f"compiling {source.path}"), warnings_shown():
        converted = arguments.compile_graph(graph, source, preprocess)
        target = {key: arguments.given[key] for key in ("target", "threads") if key in arguments.given}
        exact = cortado.compile(graph, **target)
    with progress("comparing"):
        classes = read_classes(labels) if labels else {}
        found = compare(exact, converted, read_samples(samples, graph, preprocess, first), classes, label_offset)
    if as_json:
        print_json({**found.to_dict(), "quantization": converted.quantization})
    else:
        click.echo(str(found))
        if converted.quantization is not None:
            click.echo("\n".join(["", *int8_lines(converted.quantization)]))
    shares = [output.agreement for output in found.outputs if output.agreement is not None]
    return int(any(100 * share < agreement for share in shares))
