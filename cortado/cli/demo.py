"""`cortado demo`: the bundled network compiled for three machines and run on digits it has never seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cortado.cli.console import can_show, print_json, progress, table
from cortado.cli.options import json_option

if TYPE_CHECKING:
    from cortado import Model
    from cortado.demo import Outcome

ROW = 5  # digits drawn side by side: 80 columns


@click.command("demo")
@click.option(
    "--output", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Keep the bundles here, with the network's files and the drawn digits as pictures.",
)  # fmt: skip
@json_option
def demo_command(output: Path | None, as_json: bool) -> None:
    """Read handwritten digits on three machines.

    Compiles a small network for this machine, a phone and a microcontroller, runs it, and shows answers, sizes, memory and times.

    \b
    Example: keep everything to play with
      cortado demo -o demo
    """
    from cortado import demo, digits

    record = digits.record()
    if output is not None:
        demo.save_model_and_digits(output)
    if not as_json:
        click.echo(
            f"A network of {record['parameters']:,} parameters reads handwritten digits of 8x8 pixels. In training it saw "
            f"{record['training_digits']:,} of them,\nnone of those below. It is compiled for three machines now.\n"
        )
    results: list[Outcome] = []
    steps = iter(demo.outcomes(output))
    for machine in demo.MACHINES:
        with progress(f"compiling for {machine.label} ({machine.target})"):
            outcome, model = next(steps)
        results.append(outcome)
        if outcome.how == "measured" and not as_json:
            click.echo(drawn_answers(model) + "\n")
    if as_json:
        print_json({"schema": 1, "network": record, "machines": [outcome.to_dict() for outcome in results]})
        return
    click.echo(as_text(results))
    if output is not None:
        click.echo(f"\nKept in {output}: the three bundles, the network's files, and the digits above as .pgm pictures.")


def drawn_answers(model: Model) -> str:
    """One held-out digit of each class with what the model says it is."""
    from cortado import demo, digits
    from cortado.cli.drawing import ASCII_SHADES, SHADES, draw

    shades = SHADES if can_show(sys.stdout, SHADES) else ASCII_SHADES
    images, classes = digits.held_out()
    chosen = digits.one_of_each()
    rows = []
    for row in (chosen[at : at + ROW] for at in range(0, len(chosen), ROW)):
        captions = []
        for at in row:
            probabilities = demo.answer(model, images[at])
            said = int(probabilities.argmax())
            wrong = "" if said == classes[at] else f", is {classes[at]}!"
            captions.append(f"{said} ({probabilities[said]:.1%}{wrong})")
        rows.append(draw([images[at] for at in row], captions, 16, shades))
    return "\n\n".join(rows)


def as_text(results: list[Outcome]) -> str:
    header = ("machine", "target", "code", "weights", "working memory", "stack", "held-out digits right", "time for one digit")
    rows = []
    for outcome in results:
        sizes = (f"{outcome.sizes[key]:,}" for key in ("code", "weights", "arena", "stack"))
        rows.append((outcome.machine.label, outcome.machine.target, *sizes, right(outcome), duration(outcome)))
    lines = [table(header, rows)]
    lines += [f"{o.machine.label} was not run: {o.reason}" for o in results if o.how == "not run"]
    if any(o.how == "emulated" for o in results):
        lines.append(
            "Emulated: the very library ran in QEMU, which shows that the answers are right but says nothing of the time."
        )
    lines.append("Sizes are bytes: exact, but for the stack, which is an upper bound.")
    return "\n".join(lines)


def right(outcome: Outcome) -> str:
    if outcome.how == "not run":
        return "not run"
    return f"{outcome.right} of {outcome.digits}" + (" (emulated)" if outcome.how == "emulated" else "")


def duration(outcome: Outcome) -> str:
    return f"{outcome.seconds * 1e6:,.0f} us (measured)" if outcome.seconds is not None else "not measured"
