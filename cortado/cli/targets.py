"""`cortado targets`: what --target may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cortado.cli.console import print_json, table
from cortado.errors import TargetError

if TYPE_CHECKING:
    from cortado.compiler.target import Target


@click.command("targets")
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def targets_command(names: tuple[str, ...], as_json: bool) -> None:
    """List targets, or describe those named.

    A target is CPU-or-level[+feature...][@system]; the system is linux, android, ios, macos, windows or none.

    \b
    Example: what a Cortex-M33 without its float unit is
      cortado targets cortex-m33+nofp
    """
    from cortado.backends.targets import find_target, target_names

    found = [find_target(name) for name in names] or listed(target_names())
    if as_json:
        print_json({"schema": 1, "targets": [as_document(target) for target in found]})
    elif names:
        click.echo("\n\n".join(described(target) for target in found))
    else:
        rows = [(t.name, t.family, t.vector_bits or "-", "yes" if t.fpu else "no", t.triple) for t in found]
        click.echo(table(("target", "family", "vector bits", "float unit", "triple"), rows))
        click.echo("\nAdd features with + and a system with @: cortex-a55+dotprod@android. `cortado targets TARGET` says more.")


def listed(names: tuple[str, ...]) -> list[Target]:
    """All targets; without `host` on a machine that code cannot be made for."""
    from cortado.backends.targets import find_target

    found = []
    for name in names:
        try:
            found.append(find_target(name))
        except TargetError:
            if name != "host":
                raise
    return found


def as_document(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "family": target.family,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "object_format": target.object_format,
        "pointer_bits": target.pointer_bits,
        "vector_bits": target.vector_bits,
        "fpu": target.fpu,
        "clock_hz": target.clock_hz or None,
        "instructions": sorted({row.name for row in target.rows}),
    }


def described(target: Target) -> str:
    document = as_document(target)
    document["features"] = " ".join(target.features)
    document["instructions"] = " ".join(document["instructions"])
    width = max(map(len, document))
    return "\n".join(f"{key.replace('_', ' '):{width}}  {value}" for key, value in document.items() if value not in ("", None))
