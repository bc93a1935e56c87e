"""What people write for ``run`` that is neither an image of the store nor a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.files import wanted
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("dockerd://x", "write docker-daemon:x"),
        ("podman://x", "podman save -o FILE x, then write docker-archive:FILE"),
        ("docker://nvcr.io#nvidia/pytorch:24.01-py3", "write docker://nvcr.io/nvidia/pytorch:24.01-py3"),
        ("HOST:5000#/team/x:v1", "write docker://HOST:5000/team/x:v1"),
        ("HOST#team/x", "write docker://HOST/team/x"),
        ("HOST:5000/team/x:v1", "write docker://HOST:5000/team/x:v1"),
        ("docker-archive:/a/file.tar", "write docker-archive:/a/file.tar"),
    ],
)
def test_an_image_of_elsewhere_is_refused_with_what_to_write(text: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither IMAGE\[:VERSION\]") as caught:
        wanted(text, tmp_path)
    assert caught.value.hint.endswith(advice)


def test_a_file_with_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a:b" / "x#1.sqsh"
    file.parent.mkdir()
    file.write_bytes(b"hsqs" + bytes(100))
    assert wanted("a:b/x#1.sqsh", tmp_path).path == file


@pytest.mark.parametrize("name", ["hello.sqsh", "HELLO.SQSH", "hello.squashfs", "a.sqfs", "v1.0.img"])
def test_a_file_needs_a_slash(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        if there:
            Path(name).write_bytes(b"hsqs" + bytes(100))
        with pytest.raises(ConfigError, match="is not IMAGE") as caught:
            wanted(name, None)
        assert caught.value.hint == f"for the file write ./{name}"
    assert wanted(f"./{name}", None).path == tmp_path / name
