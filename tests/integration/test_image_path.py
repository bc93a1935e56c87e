"""The whole path as a person runs it: `sqshpipe release`, with a real engine, registry and squashfs tools."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.oci.reference import Reference
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "mksquashfs", "unsquashfs", "root")

Run = Callable[..., subprocess.CompletedProcess[str]]

DOCKERFILE = """\
ARG BASE_IMAGE
FROM {base}
ARG GREETING
COPY train.py /opt/train.py
RUN echo "$GREETING" > /etc/greeting
"""


@pytest.fixture
def project(tmp_path: Path, base: Reference, registry: PrivateRegistry) -> Path:
    """A checkout with one image that is built and one that is mirrored."""
    new_store(tmp_path / "store")
    folder = tmp_path / "project"
    context = folder / "dockerfiles" / "hello"
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=base))
    (context / "train.py").write_text("print('step 1')\n")
    (folder / "images.yaml").write_text(
        f"""\
version: 1
registry: {{url: "{registry.address}/{tmp_path.name.replace("_", "-").lower()}"}}
store: {{root: {tmp_path}/store}}
defaults:
  scan: {{scanner: none}}
images:
  hello:
    base: {base}
    dockerfile: dockerfiles/hello/Dockerfile
    build_args: {{GREETING: good morning}}
  plain:
    base: {base}
"""
    )
    login = base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    return folder


@pytest.fixture
def sqshpipe(project: Path, tmp_path: Path, engine: PrivateEngine, registry: PrivateRegistry) -> Run:
    environment = {
        **os.environ,
        "DOCKER_HOST": engine.host,
        "SQSHPIPE_REGISTRY_USER": registry.username,
        "SQSHPIPE_REGISTRY_PASSWORD": registry.password,
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def run(*words: str, check: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=project,
            env={**environment, **changed},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == check, done.stderr
        assert "Traceback" not in done.stderr
        assert registry.password not in done.stdout + done.stderr
        return done

    return run


def _leftovers(tmp_path: Path) -> list[str]:
    scratch = [str(path) for path in (tmp_path / "scratch").glob("*")]
    staged = [str(path) for path in (tmp_path / "store" / "blobs" / "sha256").glob(".*")]
    return scratch + staged


def test_a_dockerfile_becomes_an_immutable_file_with_a_record(sqshpipe: Run, tmp_path: Path) -> None:
    sqshpipe("lock")
    done = sqshpipe("release", "hello", "--tag", "v1.0")
    path = Path(done.stdout.strip())
    assert path == tmp_path / "store" / "hello" / "v1.0.sqsh"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    listing = subprocess.run(["unsquashfs", "-cat", path, "etc/greeting"], capture_output=True, text=True)
    assert listing.stdout == "good morning\n"
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert "hello" in json.dumps(manifest)
    record = json.loads((tmp_path / "store" / "hello" / "v1.0.json").read_text())
    assert record["scan"] == {"status": "unscanned", "scanner": "none"}
    assert record["base"]["digest"].startswith("sha256:")
    assert record["size"] == path.stat().st_size
    assert sqshpipe("resolve", "hello").stdout.strip() == str(tmp_path / "store" / "hello" / "v1.0.sqsh")
    assert _leftovers(tmp_path) == []


def test_a_second_run_does_nothing_and_says_so(sqshpipe: Run, tmp_path: Path) -> None:
    sqshpipe("lock")
    sqshpipe("release", "hello", "--tag", "v1.0")
    blobs = tmp_path / "store" / "blobs" / "sha256"
    before = {path.name: path.stat().st_ctime_ns for path in blobs.iterdir()}
    again = sqshpipe("release", "hello", "--tag", "v1.0")
    assert "nothing changed" in again.stderr
    assert again.stdout.strip() == str(tmp_path / "store" / "hello" / "v1.0.sqsh")
    assert {path.name: path.stat().st_ctime_ns for path in blobs.iterdir()} == before
    assert sqshpipe("plan", "hello", "--json").returncode == 0


def test_the_same_image_under_a_new_version_is_not_converted_again(
    sqshpipe: Run, project: Path, tmp_path: Path
) -> None:
    sqshpipe("lock")
    first = Path(sqshpipe("release", "hello", "--tag", "v1.0").stdout.strip())
    plan = json.loads(sqshpipe("plan", "hello", "--tag", "v1.1", "--json", check=10).stdout)
    assert [step["stage"] for step in plan["images"][0]["steps"] if step["run"]] == ["publish"]
    again = sqshpipe("release", "hello", "--tag", "v1.1", "--json")
    answer = json.loads(again.stdout)
    outcomes = {stage["stage"]: stage["outcome"] for stage in answer["stages"]}
    assert (outcomes["convert"], outcomes["verify"], outcomes["publish"]) == ("skipped", "skipped", "done")
    assert "hello:v1.0 is the same image with the same options: its file is taken" in again.stderr
    assert Path(answer["path"]).samefile(first)
    assert answer["provenance"]["same_file_as"] == "hello:v1.0"
    assert (tmp_path / "store/hello/.meta/v1.1/provenance.intoto.json").is_file()
    assert sqshpipe("resolve", "hello").stdout.strip().endswith("v1.1.sqsh")
    assert _leftovers(tmp_path) == []
    images = project / "images.yaml"
    images.write_text(images.read_text().replace("defaults:\n", "defaults:\n  convert: {zstd_level: 5}\n"))
    other = json.loads(sqshpipe("release", "hello", "--tag", "v1.2", "--json").stdout)
    assert other["keys"]["convert"] != answer["keys"]["convert"]
    assert {stage["stage"]: stage["outcome"] for stage in other["stages"]}["convert"] == "done"
    sqshpipe("yank", "hello:v1.2")
    anew = json.loads(sqshpipe("release", "hello", "--tag", "v1.3", "--json").stdout)
    assert {stage["stage"]: stage["outcome"] for stage in anew["stages"]}["convert"] == "done"


def test_a_run_that_died_before_it_attested_is_finished_by_the_next(sqshpipe: Run, tmp_path: Path) -> None:
    sqshpipe("release", "plain", "--tag", "24.01")
    attached = tmp_path / "store" / "plain" / ".meta" / "24.01"
    whole = {path.name: path.read_bytes() for path in attached.iterdir()}
    assert {"provenance.intoto.json", "signature.json"} <= whole.keys()
    of_attest = whole.keys() - {"ranges.json", "layers.bin"}  # which are the conversion's
    for lost in (["signature.json"], of_attest):  # killed in the middle, or before it began
        for name in lost:
            (attached / name).unlink()
        again = sqshpipe("release", "plain", "--tag", "24.01")
        assert "nothing changed" in again.stderr
        assert "attest" in again.stderr
        assert {path.name for path in attached.iterdir()} == whole.keys()
    assert "attest" not in sqshpipe("release", "plain", "--tag", "24.01").stderr


def test_other_content_under_a_published_version_is_refused(sqshpipe: Run, project: Path) -> None:
    sqshpipe("lock")
    sqshpipe("release", "hello", "--tag", "v1.0")
    (project / "dockerfiles" / "hello" / "train.py").write_text("print('step 2')\n")
    refused = sqshpipe("release", "hello", "--tag", "v1.0", check=8)
    assert "train.py" in refused.stderr
    assert "v1.1" in refused.stderr
    sqshpipe("plan", "hello", check=10)
    sqshpipe("release", "hello", "--tag", "v1.1")


def test_a_base_is_mirrored_unchanged_without_an_engine(sqshpipe: Run, tmp_path: Path) -> None:
    done = sqshpipe("release", "plain", "--tag", "24.01", "--json", DOCKER_HOST="unix:///nowhere.sock")
    answer = json.loads(done.stdout)
    assert answer["source"]["digest"] == answer["base"]["digest"]
    assert [stage["stage"] for stage in answer["stages"]] == [
        "pin",
        "mirror",
        "scan",
        "convert",
        "verify",
        "publish",
        "attest",
    ]
    assert _leftovers(tmp_path) == []


def test_the_image_of_a_killed_run_is_adopted_not_built_again(sqshpipe: Run) -> None:
    pushed = sqshpipe("release", "hello", "--until", "push", "--json")
    done = sqshpipe("release", "hello", "--tag", "v1.0", "--json", DOCKER_HOST="unix:///nowhere.sock")
    assert json.loads(done.stdout)["source"]["digest"] == json.loads(pushed.stdout)["digest"]


@pytest.mark.parametrize(
    ("words", "changed", "code", "said"),
    [
        (["release", "helo", "--tag", "v1"], {}, 2, "hello"),
        (["release", "hello", "--tag", "../up"], {}, 2, "../up"),
        (["release", "hello", "--tag", "latest"], {}, 2, "latest"),
        (
            ["release", "hello", "--tag", "v1"],
            {"SQSHPIPE_REGISTRY_PASSWORD": "wrong"},
            4,
            "SQSHPIPE_REGISTRY",
        ),
        (
            ["release", "hello", "--tag", "v1", "--registry", "127.0.0.1:1/x"],
            {"DOCKER_CONFIG": "."},
            4,
            "127.0.0.1:1",
        ),
        (["release", "hello", "--tag", "v1"], {"DOCKER_HOST": "unix:///nowhere.sock"}, 3, "nowhere.sock"),
        (["release", "hello", "--tag", "v1", "--store", "/proc/store"], {}, 8, "/proc/store"),
    ],
    ids=[
        "unknown-image",
        "bad-tag",
        "channel-as-tag",
        "wrong-password",
        "unreachable",
        "no-engine",
        "no-store",
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(
    sqshpipe: Run, tmp_path: Path, words: list[str], changed: dict[str, str], code: int, said: str
) -> None:
    done = sqshpipe(*words, check=code, **changed)
    assert said in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "store").glob("*/*.json"))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal_nothing_is_half_there(
    sqshpipe: Run,
    project: Path,
    tmp_path: Path,
    signal_number: int,
    engine: PrivateEngine,
    registry: PrivateRegistry,
) -> None:
    sqshpipe("release", "hello", "--until", "push")
    environment = {
        **os.environ,
        "DOCKER_HOST": engine.host,
        "SQSHPIPE_REGISTRY_USER": registry.username,
        "SQSHPIPE_REGISTRY_PASSWORD": registry.password,
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "release", "hello", "--tag", "v1.0"],
        cwd=project,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    said = ""
    while "convert" not in said:
        line = child.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.05)
    child.send_signal(signal_number)
    _, rest = child.communicate(timeout=60)
    if child.returncode == 0:
        pytest.skip("it was done before the signal came")
    # the signal itself: so CPython ends when it came inside an exec(), as a dataclass has, with all handled
    assert child.returncode in (128 + signal_number, -signal_number), said + rest
    assert "Traceback" not in rest
    assert _leftovers(tmp_path) == []
    assert not list((tmp_path / "store").glob("hello/*.json"))
    sqshpipe("release", "hello", "--tag", "v1.0")


def _with_test(project: Path, expected: str) -> None:
    """Let images.yaml ask, by a command in the image, whether the greeting ends in `expected`."""
    config = project / "images.yaml"
    lines = [line for line in config.read_text().splitlines() if "test:" not in line]
    at = lines.index("    build_args: {GREETING: good morning}")
    lines.insert(at, f"    test: ['read good it < /etc/greeting; test $it = {expected}']")
    config.write_text("\n".join(lines) + "\n")


def test_an_images_own_tests_run_inside_the_file_before_it_is_published(
    sqshpipe: Run, project: Path, tmp_path: Path
) -> None:
    _with_test(project, "evening")
    failed = sqshpipe("release", "hello", "--tag", "v1.0", check=7)
    assert "hello:v1.0" in failed.stderr
    assert "= evening" in failed.stderr
    assert not list((tmp_path / "store").glob("hello/*.json"))
    assert _leftovers(tmp_path) == []
    _with_test(project, "morning")
    assert "1 of 1 commands passed" in sqshpipe("release", "hello", "--tag", "v1.0").stderr


def test_a_yanked_version_does_not_come_back_by_itself(sqshpipe: Run) -> None:
    sqshpipe("release", "hello", "--tag", "v1.0")
    sqshpipe("yank", "hello:v1.0", "--reason", "wrong data")
    refused = sqshpipe("release", "hello", "--tag", "v1.0", check=8)
    assert "yank --undo" in refused.stderr


def test_a_check_refuses_what_a_release_refuses(sqshpipe: Run, project: Path, tmp_path: Path) -> None:
    """Limits and the image's own test hold in `ci check`, with the exit code that the release has."""
    file = project / "images.yaml"
    plain = file.read_text()
    sqshpipe("lock")
    file.write_text(plain + "limits: {entries: 5}\n")
    for verb in (["ci", "check"], ["release"]):
        assert "5 members" in sqshpipe(*verb, "hello", "--tag", "v1.0", check=6).stderr
    file.write_text(plain.replace("    build_args:", "    test: [exit 9]\n    build_args:"))
    for verb in (["ci", "check"], ["release"]):
        assert "a test of hello:v1.0 failed" in sqshpipe(*verb, "hello", "--tag", "v1.0", check=7).stderr
    file.write_text(plain)
    checked = sqshpipe("ci", "check", "hello", "--tag", "v1.0")
    assert "@sha256:" in checked.stdout
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store" / "hello").glob("*.json"))
    assert _leftovers(tmp_path) == []


def test_a_version_that_cannot_be_published_is_refused_at_once(sqshpipe: Run) -> None:
    sqshpipe("lock")
    for version in ("latest", "my release v1", "key-1", "v1\nreference=evil"):
        refused = sqshpipe("ci", "check", "hello", "--tag", version, check=2)
        assert "pin" not in refused.stderr, "nothing ran"


def test_a_second_release_leaves_stable_where_it_is(sqshpipe: Run, project: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    sqshpipe("lock")
    sqshpipe("release", "hello", "--tag", "v1.0")
    sqshpipe("promote", "hello:v1.0", "stable", "--store", store)
    file = project / "images.yaml"
    file.write_text(file.read_text().replace("  hello:", "  hello:\n    channels: [latest, nightly]"))
    (project / "dockerfiles" / "hello" / "train.py").write_text("print('step 2')\n")
    sqshpipe("release", "hello", "--tag", "v1.1")
    for channel, version in (("stable", "v1.0"), ("latest", "v1.1"), ("nightly", "v1.1")):
        found = json.loads(sqshpipe("show", f"hello:{channel}", "--store", store, "--json").stdout)
        assert found["version"] == version, channel
