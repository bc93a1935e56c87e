"""Runs a command with a registry of its own: ``python -m demo.throwaway COMMAND…``.

For machines that may not use a real one, such as a runner that builds somebody else's pull request. Where no
Docker Engine answers, it brings one too. Both end with the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.cli import output
from pipeline.docker.engine import Engine
from pipeline.errors import SqshpipeError, ToolError


def main(argv: list[str]) -> int:
    """The command's exit code, or that of what could not be started."""
    if not argv:
        output.failure(ToolError("no command is given", hint="python -m demo.throwaway sqshpipe …"))
        return 2
    try:
        with ExitStack() as stack:
            environment = {**os.environ, **stack.enter_context(PrivateRegistry()).variables}
            try:
                Engine.connect().close()
            except ToolError:
                private = PrivateEngine()
                stack.callback(private.stop)
                private.start()
                environment["DOCKER_HOST"] = private.host
            return subprocess.run(argv, env=environment, check=False).returncode
    except SqshpipeError as error:
        output.failure(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
