"""The `cortado` command: its subcommands, and what becomes of errors.

Exit status: 0 fine; 1 a check failed; 2 bad input or usage; 70 a bug of cortado's.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from cortado import __version__
from cortado.cli.compile import compile_command
from cortado.cli.console import print_json
from cortado.cli.demo import demo_command
from cortado.cli.inspect import inspect_command
from cortado.cli.ops import ops_command
from cortado.cli.profile import profile_command
from cortado.cli.report import report_command
from cortado.cli.run import run_command
from cortado.cli.targets import targets_command
from cortado.cli.tune import tune_command
from cortado.cli.verify import verify_command
from cortado.errors import CortadoError, FitError, StrictError

CHECK_FAILED, BAD_INPUT, BUG, INTERRUPTED = 1, 2, 70, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortado")
def cli() -> None:
    """Compile a trained network into native code: a static library and a C header.

    \b
    Example: compile the bundled network for three machines and run it
      cortado demo
    """


for command in (
    compile_command,
    run_command,
    inspect_command,
    report_command,
    profile_command,
    verify_command,
    tune_command,
    targets_command,
    ops_command,
    demo_command,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # blob names and labels may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    status = invoke(sys.argv[1:])
    sys.exit(status)


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line; report errors; return the exit status."""
    as_json = "--json" in arguments
    try:
        status = cli.main(args=list(arguments), prog_name="cortado", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        if as_json:
            tell_json("UsageError", error.format_message())
        else:
            error.show()
        return error.exit_code
    except CortadoError as error:
        tell(as_json, type(error).__name__, str(error), getattr(error, "nodes", ()))
        return CHECK_FAILED if isinstance(error, (FitError, StrictError)) else BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        tell(as_json, "Interrupted", "interrupted")
        return INTERRUPTED
    except SystemExit:  # click's answer to a closed pipe: the reader of our output left, as in `cortado targets | head`
        return 0
    except OSError as error:
        tell(as_json, "OSError", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return BAD_INPUT
    except MemoryError:
        tell(as_json, "MemoryError", "out of memory")
        return BAD_INPUT
    except Exception as error:
        if os.environ.get("CORTADO_DEBUG"):
            traceback.print_exc()
        message = f"a bug in cortado, please report it: {type(error).__name__}: {error} (CORTADO_DEBUG=1 shows where)"
        tell(as_json, "InternalError", message)
        return BUG


def tell(as_json: bool, kind: str, message: str, nodes: Sequence[str] = ()) -> None:
    """One clear message: on stderr, or as the one document on stdout."""
    if as_json:
        tell_json(kind, message, nodes)
        return
    click.echo(f"cortado: {message}", err=True)
    for node in nodes:
        if node not in message:
            click.echo(f"  {node}", err=True)


def tell_json(kind: str, message: str, nodes: Sequence[str] = ()) -> None:
    print_json({"error": {"type": kind, "message": message, **({"nodes": list(nodes)} if nodes else {})}})


if __name__ == "__main__":
    main()
