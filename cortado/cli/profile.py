"""`cortado profile`: where a model's time goes on this machine, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np

from cortado.cli.console import print_json, progress
from cortado.cli.options import CompileArguments, ModelSource, compile_options, json_option, source_options, warnings_shown
from cortado.cli.run import Feed, feeds

if TYPE_CHECKING:
    from cortado import Model


@click.command("profile")
@source_options
@click.argument("data", nargs=-1, metavar="[[NAME=]FILE...]")
@compile_options
@click.option("--runs", type=click.IntRange(1), help="How often to run; else about two seconds' worth.")
@json_option
def profile_command(
    source: ModelSource, data: tuple[str, ...], arguments: CompileArguments, runs: int | None, as_json: bool
) -> None:
    """Time every step of MODEL on this machine.

    In the order they run, then by operator: fastest and median microseconds, share, and rate. MODEL is a folder that `compile` wrote, or
    a model file, which is compiled first. FILE, a picture, .npy or .npz, is what to run on; else noise.

    \b
    Example: which layers take the time, with two threads
      cortado profile squeezenet/ --input data=1,3,227,227 --threads 2
    """
    with progress(f"preparing {source.path}"), warnings_shown():
        model = arguments.open_or_compile(source)
    feed = noise(model)
    if data:
        stored = model.preprocess.to_dict() if model.preprocess is not None else {}
        feed = feeds(model, data, stored)[0][1]
    with progress("measuring"):
        found = model.profile(feed, runs=runs, threads=arguments.given.get("threads", 1))
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(str(found))


def noise(model: Model) -> Feed:
    """Random numbers in 0..1 for inputs of floats, the same each time; zeros, which are valid as indices, for others."""
    from cortado.compiler.types import NUMPY_DTYPE

    rng = np.random.default_rng(0)
    arrays = {}
    for name, info in model.inputs.items():
        array = np.zeros(info.shape, NUMPY_DTYPE[info.dtype])
        if info.dtype.startswith("float"):
            array[...] = rng.random(info.shape)
        arrays[name] = array
    return arrays
