"""The command line."""

import sys


def entry() -> None:
    """Entry point of the console script. Interrupted while it is still loading, it ends as quietly as later."""
    try:
        from cortado.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()
