"""`cortado compile`: a model file in, a folder with library, header, weights and manifest out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cortado.cli.console import print_json, progress, size
from cortado.cli.options import (
    CompileArguments,
    ModelSource,
    check_writable,
    compile_options,
    json_option,
    preprocess_options,
    source_options,
    warnings_shown,
)


@click.command("compile")
@source_options
@compile_options
@preprocess_options
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where to; else build/MODEL/TARGET.",
)
@json_option
def compile_command(
    source: ModelSource, arguments: CompileArguments, preprocess: dict[str, Any], output: Path | None, as_json: bool
) -> None:
    """Compile MODEL for a target.

    Writes a static library, a C header, a manifest and, with --separate-weights, the weights into a folder. MODEL is a NetDef
    (.pb, .pbtxt, with --init) or a folder with init_net and predict_net.

    \b
    Example: SqueezeNet for an Android phone
      cortado compile squeezenet/ --input data=1,3,227,227 --target cortex-a76@android -o build/phone
    """
    target = arguments.given.get("target", "host")
    folder = output or default_folder(source.path) / target
    check_writable(folder)
    with progress(f"compiling {source.path} for {target}"), warnings_shown():
        model = arguments.compile(source, preprocess)
        model.save(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if as_json:
        listed = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
        print_json({"schema": 1, "folder": str(folder), "target": target, "files": listed})
        return
    width = max(len(path.name) for path in files)
    click.echo(f"{folder}:")
    for path in files:
        click.echo(f"  {path.name:{width}}  {size(path.stat().st_size)}")


def default_folder(source: Path) -> Path:
    """build/MODEL. A folder keeps its whole name: the dot of mobilenet_v2_1.0 begins no suffix."""
    path = source.resolve()
    return Path("build") / (path.name if path.is_dir() else path.stem)
