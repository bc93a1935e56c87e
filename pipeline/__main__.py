"""``python -m pipeline`` is ``sqshpipe``; the installed command starts here too."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Ctrl-C is a plain end from the first moment on, also while modules load."""
    try:
        from pipeline.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
