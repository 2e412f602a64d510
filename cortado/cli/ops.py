"""`cortado ops`: the support table."""

from __future__ import annotations

import click

from cortado.cli.console import print_json, table


@click.command("ops")
@click.argument("names", nargs=-1, metavar="[OPERATOR]...")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the page docs/operators.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def ops_command(names: tuple[str, ...], as_markdown: bool, as_json: bool) -> None:
    """List which operators of a model file are imported, and which have kernels; or look up the ones named.

    \b
    Example: what becomes of a transposed convolution
      cortado ops ConvTranspose
    """
    from cortado import support

    if as_markdown:
        click.echo(support.markdown(), nl=False)
        return
    operators = support.caffe2_operators()
    known = {operator.name for operator in operators}
    if names:
        absent = [name for name in names if name not in known]
        if absent:
            raise click.UsageError(f"no table names {', '.join(absent)}; `cortado ops` lists what is known")
        operators = [operator for operator in operators if operator.name in names]
    if as_json:
        rows = [
            {"name": o.name, "format": "caffe2", "imported": o.imported, "compiled": o.compiled, "made_of": list(o.made_of),
             "missing_kernels": list(o.missing), "reason": o.reason or None}
            for o in operators
        ]  # fmt: skip
        print_json({"schema": 1, "operators": rows})
        return
    cells = []
    for o in operators:
        note = o.reason or (f"no kernel for {', '.join(o.missing)}" if o.missing else ", ".join(o.made_of) if names else "")
        yes = "yes" if o.imported else "no"
        cells.append((o.name, yes, yes, "yes" if o.compiled else "no", note))
    click.echo(table(("caffe2 operator", "import", "reference", "kernel", ""), cells))
