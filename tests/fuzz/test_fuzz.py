"""Fuzzing for a fixed time: hypothesis everywhere, atheris where it can be installed; --fuzz-seconds."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS, seeds

SECONDS = 4
EXAMPLES = 250  # of hypothesis for each target
_ROOT = Path(__file__).parents[2]

_EDIT = st.tuples(
    st.sampled_from(["set", "flip", "cut", "insert", "repeat", "number"]),
    st.integers(0, 1 << 16),
    st.binary(min_size=1, max_size=16),
)
_NUMBERS = [bytes(8), b"\xff" * 8, b"\xff" * 3 + b"\x7f", (1 << 31).to_bytes(8, "little"), b"77777777777\0"]


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """`data` with a few small things wrong."""
    made = bytearray(data)
    for how, where, what in edits:
        at = where % (len(made) + 1)
        if how == "set":
            made[at : at + len(what)] = what
        elif how == "flip" and at < len(made):
            made[at] ^= 1 << (what[0] % 8)
        elif how == "cut":
            del made[at : at + what[0] * 4]
        elif how == "insert":
            made[at:at] = what
        elif how == "repeat":
            made[at:at] = made[at : at + 512]
        elif how == "number":
            number = _NUMBERS[what[0] % len(_NUMBERS)]
            made[at : at + len(number)] = number
    return bytes(made)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    found = seeds(name)
    assert len(found) >= 5
    assert sum(map(len, found)) < 200_000, "a corpus is small"
    for data in found:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_end_in_a_format_error_or_well(name: str, pytestconfig: pytest.Config) -> None:
    seconds = int(pytestconfig.getoption("--fuzz-seconds"))

    @settings(
        max_examples=EXAMPLES * max(1, seconds // SECONDS),
        deadline=5000,
        derandomize=seconds == SECONDS,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.sampled_from(seeds(name)), st.lists(_EDIT, min_size=1, max_size=6))
    def run(data: bytes, edits: list[tuple[str, int, bytes]]) -> None:
        TARGETS[name](edited(data, edits))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(
    name: str, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """An input that makes the target raise, hang for 20 s or take a gigabyte fails."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python")
    seconds = int(pytestconfig.getoption("--fuzz-seconds"))
    shutil.copytree(CORPUS / name, tmp_path / "corpus")
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"tests.fuzz.fuzz_{name}", f"-max_total_time={seconds}", "-timeout=20"),
            *(
                "-rss_limit_mb=1024",
                "-max_len=20000",
                f"-artifact_prefix={tmp_path}/",
                str(tmp_path / "corpus"),
            ),
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    tried = re.search(r"Done (\d+) runs", done.stderr)
    assert tried is not None, done.stderr[-2000:]
    with capsys.disabled():
        print(f"\natheris, {name}: {tried[1]} inputs in {seconds} s, nothing found")  # noqa: T201
    assert int(tried[1]) > 20
