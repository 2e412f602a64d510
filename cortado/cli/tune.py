"""`cortado tune`: measure on this machine which kernels suit a model best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cortado.cli.console import print_json, status_line
from cortado.cli.options import (
    CompileArguments,
    ModelSource,
    int8_options,
    json_option,
    preprocess_options,
    source_options,
    warnings_shown,
)
from cortado.errors import OptionError


@click.command("tune")
@source_options
@int8_options
@preprocess_options
@click.option(
    "--target", metavar="TARGET", default="host", help="host, the default, or another target that this machine can run."
)
@click.option(
    "--tuning",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where results are kept; else, for host, the user's own file, which compilations for host find by themselves.",
)
@click.option(
    "--seconds", type=click.FloatRange(0), help="Begin nothing new after so many; the next call goes on. Else all is measured."
)
@json_option
def tune_command(
    source: ModelSource,
    arguments: CompileArguments,
    preprocess: dict[str, Any],
    target: str,
    tuning: Path | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Measure which kernels suit MODEL best on this machine.

    Tries algorithms, tiles and cuts for every convolution and fully connected layer, then chains of convolutions as one operator, checks
    that all compute the same, and keeps what it finds, also when interrupted. `compile` then takes the best. Takes minutes; nothing else
    should run meanwhile. Options of int8 and of pictures are those of `compile`; for int8 give both commands one saved calibration.

    \b
    Example: for ten minutes, then compile with what was found
      cortado tune squeezenet/ --input data=1,3,227,227 --seconds 600
      cortado compile squeezenet/ --input data=1,3,227,227
    """
    from cortado.backends.targets import find_target
    from cortado.database import user_database
    from cortado.tune import tune_graph

    if tuning is None and target != "host":
        raise OptionError(f"--target {target} needs --tuning FILE: compilations for it use a file only where they are told to")
    path = tuning or user_database()
    if path is None:
        raise OptionError("there is no folder for what is found: give --tuning FILE")
    graph = source.load()
    with warnings_shown():
        settings = arguments.settings(graph, preprocess)
    with status_line() as show:
        report = tune_graph(graph, find_target(target), path, seconds, show, settings)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))
