"""``sqshpipe doctor``: is this machine ready, and what is to be done if not."""

from __future__ import annotations

import typer

from pipeline.cli import options, output
from pipeline.errors import ConfigError, ToolError

_INDENT = 19


def doctor(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    as_json: options.Json = False,
) -> None:
    """Check tools, space, daemon, registry and store of this machine.

    The exit code is 3 if something that is needed is missing.
    """
    from pipeline.config.reading import load
    from pipeline.doctor import examine

    problem = None
    settings = None
    try:
        settings = load(config, store=store, registry=registry)
    except ConfigError as error:
        problem = error
    checks = examine(settings, problem)
    if as_json:
        output.data_json(
            [
                {"check": check.name, "status": check.status, "found": check.found, "advice": check.advice}
                for check in checks
            ]
        )
    else:
        for check in checks:
            output.data(f"{check.status:<4}  {check.name:<13}{check.found}")
            if check.advice and check.status != "ok":
                output.data(" " * _INDENT + check.advice)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(ToolError.exit_code)
