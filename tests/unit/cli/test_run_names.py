"""What people write for ``run`` that is neither an image of the store nor a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.files import wanted
from pipeline.errors import ConfigError
from tests.support.store.releases import new_store, publish


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


def test_a_named_store_needs_no_images_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank of a step looks its file up, and reading images.yaml takes as long as all the rest."""
    released = publish(new_store(tmp_path / "store"), "v1.0")
    monkeypatch.chdir(tmp_path)
    Path("images.yaml").write_text("schema: [")
    assert wanted("demo:v1.0", tmp_path / "store").path == released.path


def test_images_yaml_is_read_where_it_may_require_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(new_store(tmp_path / "store"), "v1.0")
    monkeypatch.chdir(tmp_path)
    Path("images.yaml").write_text("store: {require_signature: [")
    with pytest.raises(ConfigError, match=r"images\.yaml"):
        wanted("demo:v1.0", tmp_path / "store")
