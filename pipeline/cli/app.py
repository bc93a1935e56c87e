"""The command line: the only place that prints results and exits.

Each verb group registers its functions on `app` in a module of its own; heavy imports happen inside
the verbs, so that ``sqshpipe resolve`` starts fast.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from pipeline.cli import (
    ci,
    cluster,
    convert,
    doctor,
    ecr,
    image,
    init,
    options,
    output,
    plan,
    refresh,
    report,
    scan,
    squashfs,
    store,
)
from pipeline.errors import EXIT_DONE, EXIT_SIGINT, EXIT_SIGTERM, ConfigError, SqshpipeError, ToolError

app = typer.Typer(
    name="sqshpipe",
    help="From a Dockerfile to an immutable, versioned .sqsh that every rank shares.",
    epilog="First steps: `sqshpipe init`, `sqshpipe lock`, `sqshpipe image my-training --tag v1.0`. "
    "On a cluster: `srun --container-image=$(sqshpipe resolve my-training) …`. "
    "`sqshpipe VERB --help` tells more of each, with an example.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# These answer within a job script: they log nothing, so they need not wait for structlog to load.
_SILENT_VERBS = {"resolve", "list", "show", "diff"}


@app.callback()
def _global_options(
    context: typer.Context,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log_format: options.LogFormatOption = options.LogFormat.text,
) -> None:
    output.configure(quiet=quiet, verbose=verbose, json_log=log_format is options.LogFormat.json)
    if context.invoked_subcommand not in _SILENT_VERBS:
        from pipeline.cli import logs

        logs.begin()


# In the order in which help lists them.
_PANELS = {
    "From Dockerfile to .sqsh": (image, convert, scan, plan, refresh),
    "Releases": (store,),
    "On the cluster": (cluster,),
    "Registries and CI": (ecr, ci),
    "Looking": (report, squashfs, doctor, init),
}


_HELP_COLUMNS = 66  # what the list of verbs leaves for each in a terminal of 80 columns


def _in_one_line(help_text: str) -> str:
    """The beginning of a verb's help that fits one line of the list of verbs, cut where a clause ends."""
    sentence = " ".join(help_text.partition("\n\n")[0].split())
    ends = [match.start() for match in re.finditer(r"[.,;:](?= |$)| and |(?<=\w) \(", sentence)]
    fitting = [end for end in ends if end <= _HELP_COLUMNS]
    end = len(sentence) if len(sentence) <= _HELP_COLUMNS else max(fitting, default=_HELP_COLUMNS)
    return sentence[:end].rstrip(",")


def _register() -> None:
    for panel, modules in _PANELS.items():
        known = len(app.registered_commands), len(app.registered_groups)
        for module in modules:
            module.register(app)
        for command in app.registered_commands[known[0] :]:
            command.rich_help_panel = panel
            command.short_help = _in_one_line(command.callback.__doc__ or "") if command.callback else None
        for group in app.registered_groups[known[1] :]:
            group.rich_help_panel = panel


_register()


class _Terminated(BaseException):
    """SIGTERM, raised so that every ``finally`` on the way out removes its scratch."""


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line and exit with the code that `pipeline.errors` documents."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    code = _run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and told: a late Ctrl-C changes nothing
    sys.exit(code)


def _run() -> int:
    try:
        return app(standalone_mode=False) or EXIT_DONE
    except SqshpipeError as error:
        output.failure(error)
        return error.exit_code
    except typer.TyperException as error:
        output.failure(ConfigError(error.format_message(), hint=_help_hint(error)))
        return ConfigError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        output.interrupted("interrupted")
        return EXIT_SIGINT
    except _Terminated:
        output.interrupted("terminated")
        return EXIT_SIGTERM
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:
        return _refused_by_system(error)
    except Exception as error:  # noqa: BLE001 - the last resort, with exit code 1
        output.unexpected(error)
        return SqshpipeError.exit_code


_WHAT_TO_DO = {
    errno.EACCES: "the file system denies it: use an account that may, or another place",
    errno.EPERM: "the file system denies it: use an account that may, or another place",
    errno.EROFS: "it is mounted read-only",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "the quota is used up: free space there, or ask for more",
    errno.EIO: "the disk or the file system fails: the kernel's log says more",
    errno.ESTALE: "the file server has lost it: mount it anew",
}


def _refused_by_system(error: OSError) -> int:
    """A file that the system refuses is no defect of ours, wherever it was met."""
    if error.filename is None or error.errno not in _WHAT_TO_DO:
        output.unexpected(error)
        return SqshpipeError.exit_code
    message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    output.failure(ToolError(message, hint=_WHAT_TO_DO[error.errno]))
    return ToolError.exit_code


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'sqshpipe'} --help tells more"
