"""``python -m pipeline`` is ``sqshpipe``; the installed command starts here too."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # not typing's: until `main` runs, Ctrl-C ends in Python's own report
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Ctrl-C is a plain end from the first moment on, also while modules load."""
    try:
        from pipeline.cli.app import main as run

        run()
    except (KeyboardInterrupt, RuntimeError) as error:
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):  # 3.11 wraps it where a class is made
            raise
        sys.exit(130)


if __name__ == "__main__":
    main()
