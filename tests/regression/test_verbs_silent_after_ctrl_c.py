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
