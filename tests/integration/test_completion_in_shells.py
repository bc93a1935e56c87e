"""Tab in a real bash, zsh and fish, each in a terminal: verbs, images, and channels after a colon."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.store import releases
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

SET_UP = {
    "bash": "PS1='> '; COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\n"
    "source <(_SQSHPIPE_COMPLETE=source_bash sqshpipe)",
    "zsh": "PS1='> '; autoload -Uz compinit; compinit -u; source <(_SQSHPIPE_COMPLETE=source_zsh sqshpipe)",
    "fish": "function fish_prompt; echo '> '; end; _SQSHPIPE_COMPLETE=source_fish sqshpipe | source",
}
START = {
    "bash": ["bash", "--rcfile", "rc", "-i"],
    "zsh": ["zsh", "-i"],
    "fish": ["fish", "--no-config", "--init-command", "source rc", "-i"],
}

Typed = Callable[[str, str], str]


@pytest.fixture
def typed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Typed]:
    """Types a line and Tab in that shell and gives the screen once it shows what is awaited."""
    shell = request.param
    store = new_store(tmp_path / "store")
    for version in ("v1.0", "v1.1"):
        releases.publish(store, version)
    releases.publish(store, "v2.0", image="other")
    store.promote("demo:v1.0", "stable")
    program = tmp_path / "bin" / "sqshpipe"
    program.parent.mkdir()
    run = "import sys; sys.argv[0] = 'sqshpipe'; from pipeline.cli.app import main; main()"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "{run}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "rc").write_text(SET_UP[shell] + "\n")
    (tmp_path / ".zshrc").write_text(SET_UP[shell] + "\n")
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "SQSHPIPE_STORE": str(store.root),
        "LANG": "C.UTF-8",
        "TERM": "screen",
    }
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def do(*words: str) -> str:
        return subprocess.run(
            [*tmux, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30
        ).stdout

    do("-u", "new-session", "-d", "-x", "100", "-y", "30", *START[shell])

    def wait(text: str) -> str:
        end = time.monotonic() + PATIENCE
        while text not in (shown := do("capture-pane", "-p")) and time.monotonic() < end:
            time.sleep(0.2)
        return shown

    wait(">")  # what follows a prompt is cut off when a screen is read

    def type_line(line: str, awaited: str) -> str:
        do("send-keys", "C-c")
        do("send-keys", "-l", line)
        do("send-keys", "Tab")
        return wait(awaited)

    yield type_line
    do("kill-server")


@pytest.mark.parametrize(
    "typed",
    [pytest.param(shell, marks=pytest.mark.needs("tmux", shell), id=shell) for shell in SET_UP],
    indirect=True,
)
def test_tab_completes_verbs_images_and_channels(typed: Typed) -> None:
    for line, awaited in (
        ("sqshpipe rollb", "sqshpipe rollback"),
        ("sqshpipe show oth", "sqshpipe show other"),
        ("sqshpipe diff demo:v1.0 demo:st", "sqshpipe diff demo:v1.0 demo:stable"),
    ):
        assert awaited in typed(line, awaited), line
