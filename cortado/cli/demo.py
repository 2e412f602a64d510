"""placeholder"""

import click


@click.command("demo")
def demo_command() -> None:
    """x

    Example: y
    """
