"""The build key follows the build's inputs and nothing else, and differences are reported by name."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.config.types import ImageSpec
from pipeline.errors import ConfigError
from pipeline.image.inputs import BuildInputs, explain, gather
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

BASE, OTHER_BASE = Digest.of(b"base"), Digest.of(b"other base")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "src").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM base\nCOPY . /app\n")
    (folder / "train.py").write_text("print(1)\n")
    (folder / "src" / "model.py").write_text("x = 1\n")
    (folder / "link").symlink_to("train.py")
    return folder


def spec(folder: Path, **changes: object) -> ImageSpec:
    whole = ImageSpec(
        name="demo",
        base=Reference.parse("example.com/base:1"),
        platform=Platform.parse("linux/amd64"),
        dockerfile=folder / "Dockerfile",
        context=folder,
        build_args={"A": "1"},
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def test_the_folder_may_be_named_in_any_way(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gather(spec(context), BASE)
    monkeypatch.chdir(context)
    assert gather(spec(Path()), BASE) == whole
    monkeypatch.chdir(context.parent)
    assert gather(spec(Path("demo")), BASE) == whole


def test_key_is_the_same_for_the_same_content_elsewhere(context: Path, tmp_path: Path) -> None:
    before = gather(spec(context), BASE)
    moved = context.rename(tmp_path / "moved")
    os.utime(moved / "train.py", (1, 1))
    (moved / "train.py").chmod(0o600)
    after = gather(spec(moved), BASE)
    assert after.key == before.key
    assert len(after.key) == 64
    assert set(after.context) == {"src", "src/model.py", "train.py", "link"}


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, object], Digest, tuple[str, ...]]] = {
    "base": (
        lambda _: None,
        {},
        OTHER_BASE,
        (f"base {str(BASE)[:19]} -> {str(OTHER_BASE)[:19]}",),
    ),
    "Dockerfile": (write("Dockerfile", "FROM base\n"), {}, BASE, ("Dockerfile changed",)),
    "a file": (write("src/model.py", "x = 2\n"), {}, BASE, ("context src/model.py changed",)),
    "a new file": (write("new.py", "1"), {}, BASE, ("context new.py is new",)),
    "a file gone": (lambda f: (f / "train.py").unlink(), {}, BASE, ("context train.py was removed",)),
    "executable": (lambda f: (f / "train.py").chmod(0o755), {}, BASE, ("context train.py changed",)),
    "a link": (
        lambda f: ((f / "link").unlink(), (f / "link").symlink_to("src")),
        {},
        BASE,
        ("context link changed",),
    ),
    "an empty folder": (lambda f: (f / "empty").mkdir(), {}, BASE, ("context empty is new",)),
    "an argument": (lambda _: None, {"build_args": {"A": "2"}}, BASE, ("argument A 1 -> 2",)),
    "arguments": (
        lambda _: None,
        {"build_args": {"B": "1"}},
        BASE,
        ("argument A was removed", "argument B is new"),
    ),
    "target": (lambda _: None, {"target": "final"}, BASE, ("target None -> final",)),
    "compression": (lambda _: None, {"compression": "zstd"}, BASE, ("compression None -> zstd",)),
    "platform": (
        lambda _: None,
        {"platform": Platform.parse("linux/arm64")},
        BASE,
        ("platform linux/amd64 -> linux/arm64",),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_change_gives_another_key_and_is_named(context: Path, case: str) -> None:
    change, fields, base, reported = CHANGES[case]
    before = gather(spec(context), BASE)
    recorded = json.loads(json.dumps(before.record()))
    assert explain(recorded, BASE, gather(spec(context), BASE)) == ()
    change(context)
    after = gather(spec(context, **fields), base)
    assert after.key != before.key
    assert explain(recorded, BASE, after) == reported


def test_dockerignore_leaves_files_out(context: Path) -> None:
    before = gather(spec(context), BASE)
    (context / ".dockerignore").write_text("# not sent\n*.log\nsrc/*\n!src/model.py\n")
    (context / "run.log").write_text("1")
    (context / "src" / "junk").write_text("1")
    after = gather(spec(context), BASE)
    assert set(after.context) == {*before.context, ".dockerignore"}
    (context / "run.log").write_text("2")
    assert gather(spec(context), BASE).key == after.key


def test_ignore_file_beside_the_dockerfile_wins(context: Path, tmp_path: Path) -> None:
    outside = tmp_path / "other.Dockerfile"
    outside.write_text("FROM base\n")
    (tmp_path / "other.Dockerfile.dockerignore").write_text("src\nlink\n")
    (context / ".dockerignore").write_text("train.py\n")
    assert set(gather(spec(context, dockerfile=outside), BASE).context) == {
        ".dockerignore",
        "Dockerfile",
        "train.py",
    }


def test_large_contexts_are_recorded_by_folder_and_still_explained(context: Path) -> None:
    for folder in range(30):
        (context / f"d{folder}").mkdir()
        for file in range(20):
            (context / f"d{folder}" / f"{file}.txt").write_text("x")
    recorded = gather(spec(context), BASE).record()
    assert len(recorded["context"]) < 40
    (context / "d7" / "3.txt").write_text("y")
    assert explain(recorded, BASE, gather(spec(context), BASE)) == ("context d7 changed",)


def test_many_differences_are_counted(context: Path) -> None:
    recorded = gather(spec(context), BASE).record()
    for number in range(9):
        (context / f"new{number}").write_text("x")
    reported = explain(recorded, BASE, gather(spec(context), BASE))
    assert reported[-1] == "4 more files of the context"
    assert len(reported) == 6


def test_records_that_say_nothing_explain_nothing(context: Path) -> None:
    assert explain({}, None, gather(spec(context), BASE)) == ()
    assert explain({}, OTHER_BASE, gather(spec(context), BASE))[0].startswith("base ")


def test_a_pipe_or_a_socket_in_the_context_is_not_part_of_a_build(context: Path) -> None:
    before = gather(spec(context), BASE)
    os.mkfifo(context / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(context / "socket"))
    assert gather(spec(context), BASE) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_in_the_context_is_refused(context: Path) -> None:
    os.mknod(context / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(ConfigError, match="null is a device"):
        gather(spec(context), BASE)
    (context / ".dockerignore").write_text("null\n")
    assert "null" not in gather(spec(context), BASE).context


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_files_that_say_what_is_built_are_regular_files(context: Path, name: str, kind: str) -> None:
    (context / name).unlink(missing_ok=True)
    (os.mkfifo if kind == "pipe" else os.mkdir)(context / name)
    with pytest.raises(ConfigError, match=f"{name} cannot be read: not a regular file"):
        gather(spec(context), BASE)


def test_case_counts_in_dockerignore(context: Path) -> None:
    """BuildKit sends data/ where .dockerignore says Data."""
    (context / ".dockerignore").write_text("Data\n")
    (context / "data").mkdir()
    (context / "data" / "train.yaml").write_text("lr: 1\n")
    before = gather(spec(context), BASE)
    (context / "data" / "train.yaml").write_text("lr: 2\n")
    after = gather(spec(context), BASE)
    assert after.key != before.key
    assert explain(before.record(), BASE, after) == ("context data/train.yaml changed",)


def test_an_exception_with_a_wildcard_brings_files_back(context: Path) -> None:
    (context / ".dockerignore").write_text("*\n!**/*.py\n")
    before = gather(spec(context), BASE)
    assert set(before.context) == {"train.py", "src", "src/model.py", "Dockerfile"}
    (context / "src" / "model.py").write_text("x = 2\n")
    assert gather(spec(context), BASE).key != before.key


def test_whether_the_dockerfile_itself_is_sent_counts(context: Path) -> None:
    (context / ".dockerignore").write_text("*\n!train.py\n")
    left_out = gather(spec(context), BASE)
    (context / ".dockerignore").write_text("*\n!train.py\n!Dockerfile\n")
    sent = gather(spec(context), BASE)
    (context / "Dockerfile").chmod(0o755)
    executable = gather(spec(context), BASE)
    assert len({left_out.key, sent.key, executable.key}) == 3


def test_what_is_copied_is_what_is_fingerprinted(context: Path, tmp_path: Path) -> None:
    (context / "run.sh").write_text("#!/bin/sh\n")
    (context / "run.sh").chmod(0o751)
    (context / "empty").mkdir(mode=0o750)
    (context / "new\nline").write_text("1")
    (context / os.fsdecode(b"caf\xe9")).write_text("1")
    (context / "large").write_bytes(os.urandom(3 << 20))
    os.utime(context / "train.py", ns=(1, 1_000_000_007))
    os.mkfifo(context / "pipe")
    (context / ".dockerignore").write_text("src/*\n!src/keep\n")
    (context / "src" / "keep").write_text("1")
    copy = tmp_path / "copy"
    inputs = gather(spec(context), BASE, copy_to=copy)
    assert inputs == gather(spec(context), BASE)
    again = gather(spec(copy), BASE)
    assert again == inputs
    assert stat.S_IMODE((copy / "run.sh").stat().st_mode) == 0o751
    assert stat.S_IMODE((copy / "empty").stat().st_mode) == 0o750
    assert (copy / "train.py").stat().st_mtime_ns == 1_000_000_007
    assert {path.name for path in (copy / "src").iterdir()} == {"keep"}
    assert not (copy / "pipe").exists()


def test_deep_contexts_are_walked(context: Path) -> None:
    deep = context
    for _ in range(300):
        deep = deep / "dd"
    deep.mkdir(parents=True)
    (deep / "f").write_text("1")
    assert len(gather(spec(context), BASE).context) == 301 + 4


def test_a_folder_that_is_left_out_need_not_be_readable(
    context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (context / "private").mkdir()
    (context / ".dockerignore").write_text("private\n!private/[x]\n")
    scan = os.scandir

    def denied(path: str) -> object:
        if path.endswith("/private"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "private" not in gather(spec(context), BASE).context
    (context / ".dockerignore").write_text("!private\n")
    with pytest.raises(ConfigError, match="private cannot be read: Permission denied"):
        gather(spec(context), BASE)


def test_max_age_gives_one_build_a_period(context: Path) -> None:
    monthly = spec(context, max_age=timedelta(days=30))
    first, later, after = (
        gather(monthly, BASE, now=datetime(1970, month, 2, tzinfo=timezone.utc)) for month in (2, 2, 4)
    )
    assert first.key == later.key != after.key
    assert explain(first.record(), BASE, after) == ("older than max_age",)
    assert gather(spec(context), BASE).period is None


def test_mirrored_images_have_no_inputs(context: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to build"):
        gather(spec(context, dockerfile=None, context=None), BASE)


def test_a_name_cannot_fake_a_line(context: Path) -> None:
    recorded = gather(spec(context), BASE).record()
    (context / "\n::error::x\x1b[2J").write_text("x")
    assert explain(recorded, BASE, gather(spec(context), BASE)) == ("context \\n::error::x\\x1b[2J is new",)


def test_names_that_are_no_utf8_count(context: Path) -> None:
    (context / os.fsdecode(b"\xff.bin")).write_text("x")
    inputs = gather(spec(context), BASE)
    assert isinstance(inputs, BuildInputs)
    assert len(inputs.key) == 64
    json.dumps(inputs.record())


def test_without_a_compression_key_and_record_are_those_from_before_it(context: Path) -> None:
    inputs = gather(spec(context), BASE)
    assert "compression" not in inputs.record()
    assert inputs.key.startswith("520ccc9613df")


def test_the_dockerfile_is_recorded_as_text_unless_it_is_long(context: Path) -> None:
    (context / "Dockerfile").write_bytes(b"FROM base\nRUN echo \xff\n")
    inputs = gather(spec(context), BASE)
    assert inputs.record()["dockerfile_text"] == "FROM base\nRUN echo \\xff\n"
    (context / "Dockerfile").write_text("FROM base\n" + "#" * 70_000)
    long = gather(spec(context), BASE)
    assert "dockerfile_text" not in long.record()
    assert dataclasses.replace(long, dockerfile_text="").key == long.key
