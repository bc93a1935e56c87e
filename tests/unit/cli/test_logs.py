"""What libraries log goes through the one door to stderr."""

from __future__ import annotations

import subprocess
import sys

from tests.support.faults.hostile_text import FAKE

_PROGRAM = """
import logging, sys, warnings
from pipeline.cli import logs
from tests.support.faults.hostile_text import FIELD
logs.begin()
logging.getLogger("a.library").warning("Failed to parse headers (url=%s)", FIELD)
logging.getLogger("a.library").info("not shown: %s", FIELD)
logging.getLogger("botocore").error("too few %s %s", FIELD)
warnings.warn(FIELD)
"""


def test_a_librarys_warning_is_one_escaped_line() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    lines = done.stderr.split("\n")
    assert sum("Failed to parse headers" in line for line in lines) == 1
    assert "a.library: " in done.stderr
    assert "not shown" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not [line for line in lines if line.lstrip().startswith((FAKE, "::"))]


def test_nothing_is_loaded_for_a_line_that_is_not_shown() -> None:
    """A hook of a job says in a line of `debug` which mount it has made, and nobody asked for it."""
    program = (
        "import sys\n"
        "from pipeline.cli import logs, output\n"
        "from pipeline.system.log import log\n"
        "logs.begin()\n"
        "log.debug('hidden')\n"
        "assert 'structlog' not in sys.modules\n"
        "output.be_verbose()\n"
        "log.debug('shown', by='kernel')\n"
        "log.info('too')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stderr.splitlines()] == [["shown", "by=kernel"], ["too"]]
    assert done.stdout == ""
