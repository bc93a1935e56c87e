"""The real BuildKit puts the same values in place of variables, and reads the same image in quotes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.image.dockerfile_words import substituted

pytestmark = pytest.mark.needs("dockerd", "docker", "root")

FIRST_WITH_PATTERNS = 23  # the first Docker whose BuildKit has the operators #, % and /
VALUES = {"TAG": "v24.01-py3-igpu", "SET": "x", "EMPTY": "", "PATH_": "a-b-c"}
SAME = {
    "$SET": "x",
    "${SET}": "x",
    "a$SET": "ax",
    "a${SET}b": "axb",
    "a$SET.b": "ax.b",
    "a${NONE}b": "ab",
    "a$NONE": "a",
    "a${EMPTY}b": "ab",
    "${NONE:-other}": "other",
    "${EMPTY:-other}": "other",
    "${SET:-other}": "x",
    "${NONE:-${TAG}}": "v24.01-py3-igpu",
    "${NONE:-a${SET}b}": "axb",
    "${NONE:-${EMPTY:-${SET}}}": "x",
    "${SET:+yes}": "yes",
    "a${EMPTY:+yes}": "a",
    "a${NONE:+yes}": "a",
    "${SET:+a${TAG}}": "av24.01-py3-igpu",
    "${SET:?needed}": "x",
    "'abc'": "abc",
    '"a$SET"': "ax",
    "\"a\"'b'c": "abc",
    '"${NONE:-a}"': "a",
    "a\\b": "ab",
    "${NONE:-'q'}": "q",
    '${NONE:-"q"}': "q",
    "base-${TARGETARCH}": "base-amd64",
    "$TARGETOS-$BUILDARCH": "linux-amd64",
}
WITH_PATTERNS = {
    "${EMPTY-other}a": "a",
    "${NONE-other}": "other",
    "a${EMPTY+yes}": "ayes",
    "a${NONE+yes}": "a",
    "${SET?needed}": "x",
    "${TAG%-igpu}": "v24.01-py3",
    "${TAG%-*}": "v24.01-py3",
    "${TAG%%-*}": "v24.01",
    "${TAG#v}x": "24.01-py3-igpux",
    "x${TAG#*-}": "xpy3-igpu",
    "x${TAG##*-}": "xigpu",
    "${TAG/-/_}": "v24.01_py3-igpu",
    "${TAG//-/_}": "v24.01_py3_igpu",
    "${PATH_//-/}": "abc",
    "${TAG%${NONE:--igpu}}": "v24.01-py3",
    "${TAG//*/all}": "all",
    "${TAG/*/all}": "all",
    "x${EMPTY//*/none}": "xnone",
    "${PATH_//?/z}": "zzzzz",
    "${PATH_//-/\\$SET}": "a\\b\\c",
    "${TAG%?}": "v24.01-py3-igp",
}


@pytest.fixture(scope="module")
def connected(engine: PrivateEngine) -> Iterator[Engine]:
    with Engine.connect(engine.host) as found:
        yield found


def builds(engine: Engine, folder: Path, text: str) -> bool:
    (folder / "Dockerfile").write_text(text)
    frontend = buildkit.find_frontend(engine)
    assert frontend is not None
    done = subprocess.run(
        [*frontend.argv, "-q", "--output", f"type=tar,dest={folder}/out", str(folder)],
        env={**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0


def arguments() -> str:
    return "".join(f'ARG {name}="{value}"\n' for name, value in VALUES.items())


def test_the_same_values_as_the_real_buildkit(connected: Engine, tmp_path: Path) -> None:
    automatic = {"TARGETARCH": "amd64", "TARGETOS": "linux", "BUILDARCH": "amd64"}
    recent = int(connected.version.split(".")[0]) >= FIRST_WITH_PATTERNS
    for word, expected in {**SAME, **WITH_PATTERNS}.items():
        ours = substituted(word, {**VALUES, **automatic})
        assert ours == expected, word
        if word in WITH_PATTERNS and not recent:
            continue
        # a stage of the expected name: any other name would be an image, and there is no registry
        stages = f"FROM scratch AS {expected}\nCOPY Dockerfile /\nFROM {word}\nCOPY Dockerfile /b\n"
        assert builds(connected, tmp_path, arguments() + stages), word


def test_another_name_than_that_of_a_stage_fails(connected: Engine, tmp_path: Path) -> None:
    stages = "FROM scratch AS first\nCOPY Dockerfile /\nFROM 127.0.0.1:1/$SET\nCOPY Dockerfile /b\n"
    assert not builds(connected, tmp_path, arguments() + stages)


@pytest.mark.parametrize("source", ["first", '"first"', "'FIRST'", 'fi"rs"t', "fi\\rst"])
def test_quotes_around_the_name_in_a_flag(connected: Engine, tmp_path: Path, source: str) -> None:
    text = f"FROM scratch AS first\nCOPY Dockerfile /a\nFROM scratch\nCOPY --from={source} /a /b\n"
    assert builds(connected, tmp_path, text)
