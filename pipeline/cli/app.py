"""The command line: the only place that prints results and exits.

Each verb group registers its functions on `app` in a module of its own; heavy imports happen inside
the verbs, so that ``sqshpipe resolve`` starts fast.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from pipeline.cli import cluster, convert, doctor, ecr, options, output, plan, refresh, store
from pipeline.errors import EXIT_SIGINT, EXIT_SIGTERM, SqshpipeError

app = typer.Typer(
    name="sqshpipe",
    help="From a Dockerfile to an immutable, versioned .sqsh that every rank shares.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


cluster.register(app)


@app.callback()
def _global_options(
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log_format: options.LogFormatOption = options.LogFormat.text,
) -> None:
    output.configure(quiet=quiet, verbose=verbose, log_format=log_format.value)


convert.register(app)
doctor.register(app)
ecr.register(app)
plan.register(app)
refresh.register(app)
store.register(app)


class _Terminated(BaseException):
    """SIGTERM, raised so that every ``finally`` on the way out removes its scratch."""


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line and exit with the code that `pipeline.errors` documents."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        app(standalone_mode=True)
        code = 0
    except SqshpipeError as error:
        output.failure(error)
        code = error.exit_code
    except KeyboardInterrupt:
        output.interrupted("interrupted")
        code = EXIT_SIGINT
    except _Terminated:
        output.interrupted("terminated")
        code = EXIT_SIGTERM
    sys.exit(code)
