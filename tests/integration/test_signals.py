"""One signal ends a command within seconds, also while its threads wait for a registry that never answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.servers.stalling_registry import How, stalling_registry, until_asked
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
SECONDS = 4.0  # 2 are promised; a busy machine takes its share
VERBS = {
    "native": ("convert", "docker://HOST/base/a:1", "-o", "a.sqsh", "--converter", "native"),
    "mksquashfs": ("convert", "docker://HOST/base/a:1", "-o", "a.sqsh", "--converter", "mksquashfs"),
    "mirror": ("registry", "mirror", "a"),
    "release": ("release", "a", "--tag", "v1"),
    "all images": ("release", "--all", "--tag", "v1"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["silent", "mid-body", "wait"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_is_not_kept_waiting_by_a_registry(
    verb: str, how: How, number: signal.Signals, tmp_path: Path
) -> None:
    with stalling_registry(how) as server:
        server.empty = "team" if verb == "mirror" else ""
        new_store(tmp_path / "store")
        (tmp_path / "images.yaml").write_text(
            f"version: 1\nregistry: {{url: {server.host}/team}}\nstore: {{root: {tmp_path}/store}}\n"
            "defaults: {scan: {scanner: none}}\n"
            f"images:\n  a: {{base: '{server.host}/base/a:1'}}\n  b: {{base: '{server.host}/base/b:1'}}\n"
        )
        assert _started(("lock",), tmp_path).wait(60) == 0
        running = _started(tuple(word.replace("HOST", server.host) for word in VERBS[verb]), tmp_path)
        try:
            until_asked(server)
            time.sleep(0.3)
            began = time.monotonic()
            running.send_signal(number)
            assert running.wait(30) == 128 + number
            assert time.monotonic() - began < SECONDS
        finally:
            running.kill()
            running.wait()
    assert not list(tmp_path.glob("scratch/*"))
    assert not list(tmp_path.glob("*.sqsh*"))
    assert not _left_in(tmp_path), "no process of ours stays behind"


def _started(words: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    own = {"SQSHPIPE_CACHE": f"{folder}/cache", "SQSHPIPE_SCRATCH": f"{folder}/scratch"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _left_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
    return found
