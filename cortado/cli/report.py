"""`cortado report`: what a compiled model costs, layer by layer."""

from __future__ import annotations

import click

from cortado.cli.console import print_json, progress
from cortado.cli.options import CompileArguments, ModelSource, compile_options, json_option, source_options


@click.command("report")
@source_options
@compile_options
@json_option
def report_command(source: ModelSource, arguments: CompileArguments, as_json: bool) -> None:
    """Show what MODEL costs, whole and per layer.

    Bytes of code, weights, memory and stack, and multiply-adds. MODEL is a folder that `compile` wrote, or a model file, which is
    then compiled for --target first.

    \b
    Example: does it fit the board?
      cortado report squeezenet/ --input data=1,3,227,227 --target cortex-m7
    """
    with progress(f"preparing {source.path}"):
        report = arguments.open_or_compile(source).report()
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))
