"""The command line in a real terminal (tmux): help, width, colour, wide characters, what a bar leaves."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.report.text import cells
from tests.support.store.showcase import showcase

pytestmark = pytest.mark.needs("tmux")

ROOT = Path(__file__).parents[2]
Screen = Callable[..., str]


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    """Runs a command in a terminal of 80 columns and gives what stands on it."""
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def run(*words: str, variables: str = "", colours: bool = False) -> str:
        line = shlex.join([sys.executable, "-m", "pipeline", *words])
        size = ["-x", "80", "-y", "200"]
        script = f"cd {tmp_path}; PYTHONPATH={ROOT} LANG=C.UTF-8 {variables} {line}; echo END $?; sleep 60"
        subprocess.run([*tmux, "-u", "new-session", "-d", *size, "sh", "-c", script], check=True, timeout=20)
        shown = ""
        for _ in range(300):
            capture = [*tmux, "capture-pane", "-p", *(["-e"] if colours else [])]
            shown = subprocess.run(capture, capture_output=True, text=True, check=True, timeout=20).stdout
            if "END " in shown:
                break
            time.sleep(0.1)
        subprocess.run([*tmux, "kill-session"], check=True, timeout=20)
        return shown

    yield run
    subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=20)


@pytest.mark.parametrize(
    "verb", ["release", "convert", "resolve", "diff", "report", "init", "store prune", "refresh"]
)
def test_help_fits_a_screen(screen: Screen, verb: str) -> None:
    shown = screen(*verb.split(), "--help", variables="NO_COLOR=1")
    lines = shown[: shown.index("END 0")].rstrip().splitlines()
    assert len(lines) <= 60, f"{len(lines)} lines"
    assert max(map(cells, lines)) <= 80


def test_no_color_is_obeyed(screen: Screen) -> None:
    coloured = re.compile(r"\x1b\[[0-9;]*3[1-7]")
    assert coloured.search(screen("--help", colours=True))
    plain = screen("--help", variables="NO_COLOR=1", colours=True)
    assert not coloured.search(plain)
    assert "From a Dockerfile" in plain


def test_a_report_leaves_its_path_and_no_half_drawn_bar(screen: Screen, tmp_path: Path) -> None:
    showcase(tmp_path / "한국어", tmp_path / "work")
    shown = screen("report", "--store", "한국어", "-o", "쪽.html", variables="NO_COLOR=1")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines[-2:] == ["쪽.html", "END 0"]
    assert len(lines) < 10, shown
    assert "한국어" in (tmp_path / "쪽.html").read_text(encoding="utf-8")


def test_a_misspelt_name_gets_the_right_one(screen: Screen, tmp_path: Path) -> None:
    showcase(tmp_path / "store", tmp_path / "work")
    shown = screen("resolve", "pytorh", "--store", "store")
    assert "did you mean pytorch?" in shown
    assert "END 2" in shown


def test_every_verb_has_one_line_in_the_list_and_the_list_fits_the_screen(screen: Screen) -> None:
    shown = screen("--help", variables="NO_COLOR=1")
    lines = shown[: shown.index("END 0")].rstrip().splitlines()
    assert len(lines) <= 50
    assert max(map(cells, lines)) <= 80
    panels = [line for line in lines if line.startswith("│")]
    verbs = panels[panels.index(next(line for line in panels if line.startswith("│ release "))) :]
    assert not [line for line in verbs if line.startswith("│   ")], "a verb's help runs into a second line"


def test_lists_and_facts_fit_and_keep_wide_characters(screen: Screen, tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    store.mark(
        "pytorch:24.01",
        "yank",
        reason="노드 16개에서 NCCL이 멈춥니다. 다음 버전을 쓰고, 급하면 24.02로 돌아가세요",
    )
    lines = screen("list", "--store", "store").splitlines()
    assert sum(bool(re.match(r"megatron-training:v.* published$", line)) for line in lines) == 5
    shown = screen("show", "pytorch:24.01", "--store", "store")
    start = shown.index("state")
    reason = shown[start : shown.index("path")]
    assert reason.splitlines()[1].startswith(" " * 12), "broken at a word, under its beginning"
    assert "멈춥니다. 다음 버전을 쓰고, 급하면 24.02로 돌아가세요" in " ".join(reason.split())
