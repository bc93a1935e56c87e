"""Runs a command with a registry of its own: ``python -m demo.throwaway [--base] COMMAND…``.

For machines that may not use a real one, such as a runner that builds somebody else's pull request. Where no
Docker Engine answers, it starts one too. Both end with the command. With ``--base`` the registry also has a
small base image, whose reference is in the variable DEMO_BASE.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from demo.base import push_base
from demo.engine import PrivateEngine
from demo.registry import registry_for
from pipeline.cli import logs, output
from pipeline.docker.engine import Engine
from pipeline.errors import SqshpipeError, ToolError
from pipeline.oci.reference import Reference


def main(argv: list[str]) -> int:
    """The command's exit code, or that of what could not be started."""
    output.configure(quiet=True, verbose=False, json_log=False)
    logs.begin()
    with_base = argv[:1] == ["--base"]
    command = argv[1:] if with_base else argv
    if not command:
        output.failure(ToolError("no command is given", hint="python -m demo.throwaway sqshpipe …"))
        return 2
    try:
        with ExitStack() as stack:
            variables = _started(stack, with_base=with_base)
            _welcome(variables, command)
            return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    except FileNotFoundError:
        output.failure(ToolError(f"{command[0]} is not a program on this PATH"))
        return ToolError.exit_code
    except SqshpipeError as error:
        output.failure(error)
        return error.exit_code


def _started(stack: ExitStack, *, with_base: bool) -> Mapping[str, str]:
    """Start the engine where none answers, and the registry; gives the variables that lead to both."""
    variables: dict[str, str] = {}
    try:
        engine = stack.enter_context(Engine.connect())
    except ToolError:
        private = stack.enter_context(PrivateEngine())
        engine = stack.enter_context(Engine.connect(private.host))
        variables["DOCKER_HOST"] = private.host
    registry = stack.enter_context(registry_for(engine))
    variables.update(registry.variables)
    if with_base:
        base = Reference.parse(f"{registry.address}/base/python:24.01-py3")
        push_base(engine, base, registry.credentials)
        variables["DEMO_BASE"] = str(base)
    return variables


def _welcome(variables: Mapping[str, str], command: list[str]) -> None:
    host = variables.get("DOCKER_HOST", "the one that answers already")
    lines = [f"registry  {variables['SQSHPIPE_REGISTRY']}, in SQSHPIPE_REGISTRY", f"engine    {host}"]
    if base := variables.get("DEMO_BASE"):
        lines.append(f"base      {base}, in DEMO_BASE")
    lines.append(f"What was started here ends with {command[0]}; a shell ends with: exit")
    print("\n".join(f"  {line}" for line in lines), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
