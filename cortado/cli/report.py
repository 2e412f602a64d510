"""`cortado report`: what a compiled model costs, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from cortado.cli.console import print_json, progress
from cortado.cli.options import (
    CompileArguments,
    ModelSource,
    compile_options,
    json_option,
    preprocess_options,
    source_options,
    warnings_shown,
)
from cortado.errors import OptionError
from cortado.report import Report


@click.command("report")
@source_options
@compile_options
@preprocess_options
@click.option("--measure", is_flag=True, help="For int8: measure every layer in float32 and in int8 on this machine.")
@json_option
def report_command(
    source: ModelSource, arguments: CompileArguments, preprocess: dict[str, Any], measure: bool, as_json: bool
) -> None:
    """Show what MODEL costs, whole and per layer.

    Bytes of code, weights, memory and stack, and multiply-adds; for int8 also range, scale, error and times of every layer. MODEL is a
    folder that `compile` wrote, or a model file, which is then compiled for --target first.

    \b
    Example: does it fit the board, and where does int8 pay?
      cortado report squeezenet/ --input data=1,3,227,227 --target cortex-m7
      cortado report squeezenet/ --input data=1,3,227,227 --dtype int8 --calibrate pictures --measure
    """
    with progress(f"preparing {source.path}"), warnings_shown():
        report = _measured(source, arguments, preprocess) if measure else arguments.open_or_compile(source, preprocess).report()
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))


def _measured(source: ModelSource, arguments: CompileArguments, preprocess: dict[str, Any]) -> Report:
    """The report with times of both forms of every layer."""
    import cortado
    from cortado.int8_times import with_measured_times

    if arguments.given.get("dtype") != "int8":
        raise OptionError("--measure compares int8 with float32: give --dtype int8 and --calibrate")
    graph = source.load()
    arguments = arguments.calibrated(graph, preprocess)
    report = arguments.compile_graph(graph, source, preprocess).report()
    target = {key: arguments.given[key] for key in ("target",) if key in arguments.given}
    exact = cortado.compile(graph, **target)
    whole = CompileArguments({**arguments.given, "keep_float": ("none",)}).compile_graph(graph, source, preprocess)
    assert report.quantization is not None
    return replace(report, quantization=with_measured_times(report.quantization, exact, whole))
