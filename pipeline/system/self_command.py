"""Start this program again as another process: in a Slurm step, in a namespace, for another image.

The one place that names the program in a string. It runs from a checkout as well as from an installed
package, and the user's PYTHONPATH takes no part.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parents[2])


MAIN = "from pipeline.__main__ import main; main()"
"""Python that runs the command line, once the package can be imported."""


def verb(*words: str) -> list[str]:
    """The argv of a verb, for example `verb("run", "x.sqsh", "--", "true")`."""
    return _argv(MAIN, words)


def module(name: str, *words: str) -> list[str]:
    """The argv that calls `main()` of the module `name` and exits with what it returns."""
    return _argv(f"import importlib; sys.exit(importlib.import_module({name!r}).main())", words)


def installed(*words: str) -> list[str]:
    """The argv that people and timers write: the command `sqshpipe` next to this Python when it exists."""
    command = Path(sys.executable).with_name("sqshpipe")
    return [*([str(command)] if command.is_file() else [sys.executable, "-m", "pipeline"]), *words]


def _argv(code: str, words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {_PACKAGE!r}); {code}", *words]
