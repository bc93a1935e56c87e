"""Ctrl-C inside a verb ended without a sentence, since typer made an exit code of it; and a reader of our
output that left, as `head` does, ended us with exit code 1 where a write met it inside the verb.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.servers.registry import Quiet, serving

ROOT = Path(__file__).parents[2]


def test_ctrl_c_is_reported(tmp_path: Path) -> None:
    asked = tmp_path / "asked"

    class Silent(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - a name that http.server asks for
            asked.touch()
            time.sleep(30)

        do_HEAD = do_GET  # noqa: N815 - the same

    with serving(Silent) as host:
        argv = [sys.executable, "-m", "pipeline", "convert", f"docker://{host}/a:1", "-o", tmp_path / "x"]
        process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not asked.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, reported = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "sqshpipe: interrupted" in reported
    assert "Traceback" not in reported


def test_a_reader_that_leaves_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with contextlib.closing(os.fdopen(writing, "wb")) as gone:
        argv = [sys.executable, "-m", "pipeline", "config", "schema"]
        done = subprocess.run(argv, cwd=ROOT, env=environment, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "code", "said"), [("INT", 130, "interrupted"), ("TERM", 143, "terminated")])
def test_a_signal_while_a_class_is_made_is_no_defect(name: str, code: int, said: str) -> None:
    """Python 3.11 makes a RuntimeError of what `__set_name__` raises; modules load while a verb begins."""
    load = f"""
import os, signal, sys
from pipeline.cli import app, releases
def load(*_, **__):
    class Field:
        def __set_name__(self, *_):
            os.kill(os.getpid(), signal.SIG{name})
    class Record:
        field = Field()
app.command_line = lambda _: load
app.main()
"""
    done = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert f"sqshpipe: {said}" in done.stderr
    assert "defect" not in done.stderr


def test_nothing_slow_loads_before_ctrl_c_is_looked_for() -> None:
    """What is pressed before that ends in Python's own report of where it was."""
    loaded = (
        "import sys; before = set(sys.modules); import pipeline.__main__; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"__future__", "pipeline", "pipeline.__main__"}
