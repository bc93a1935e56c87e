from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.convert.sources import opened_source
from pipeline.errors import ConfigError, SqshpipeError
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource
from tests.support.images.layers import LayerBuilder, write_docker_archive, write_layout

LINUX = Platform.parse("linux/amd64")
LAYER = LayerBuilder().file("bin/sh", b"#!\n", mode=0o755)


def name_and_layers(text: str, tmp_path: Path, platform: Platform = LINUX) -> tuple[str, int]:
    with opened_source(text, platform, scratch=tmp_path / "scratch") as source:
        found: ImageSource = source
        return found.name, len(found.config().diff_ids)


def test_a_layout_with_and_without_a_tag(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", [LAYER], tag="one")
    assert name_and_layers(f"oci:{tmp_path}/layout:one", tmp_path) == (f"oci:{tmp_path}/layout:one", 1)
    assert name_and_layers(f"oci:{tmp_path}/layout", tmp_path)[1] == 1


def test_an_archive_with_and_without_a_name(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    write_docker_archive(file, [LAYER, LAYER], tags=["demo:v1"])
    assert name_and_layers(f"docker-archive:{file}", tmp_path)[1] == 2
    assert name_and_layers(f"docker-archive:{file}:demo:v1", tmp_path)[1] == 2
    with pytest.raises(SqshpipeError, match="demo:v2"):
        name_and_layers(f"docker-archive:{file}:demo:v2", tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "demo", "docker:demo", "docker://", "tar:file", "oci:", "docker-archive:", "/path/to/file", "://x"],
)
def test_what_is_no_source_is_reported_with_what_to_write(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        name_and_layers(text, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["oci", "docker-archive"])
def test_what_is_not_there_is_one_sentence(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SqshpipeError, match="nothing-here"):
        name_and_layers(f"{kind}:{tmp_path}/nothing-here", tmp_path)


def test_an_image_for_another_platform_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", [LAYER], platform="linux/arm64")
    with pytest.raises(ConfigError, match="linux/arm64"):
        name_and_layers(f"oci:{tmp_path}/layout", tmp_path)
    arm = Platform.parse("linux/arm64")
    assert name_and_layers(f"oci:{tmp_path}/layout", tmp_path, arm)[1] == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("dockerd://x", "write docker-daemon:x"),
        ("dockerd://team/x:v1", "write docker-daemon:team/x:v1"),
        ("docker-daemon://x:v1", "write docker-daemon:x:v1"),
        ("podman://x", "podman save -o FILE x, then write docker-archive:FILE"),
        ("containers-storage:x", "podman save -o FILE x, then write docker-archive:FILE"),
        ("HOST:5000#/team/x:v1", "write docker://HOST:5000/team/x:v1"),
        ("HOST:5000#team/x:v1", "write docker://HOST:5000/team/x:v1"),
        ("docker://HOST:5000#/team/x:v1", "write docker://HOST:5000/team/x:v1"),
        (
            "docker://$oauthtoken@nvcr.io#nvidia/pytorch:24.01-py3",
            "docker://nvcr.io/nvidia/pytorch:24.01-py3",
        ),
        ("nvcr.io#nvidia/pytorch:24.01-py3", "write docker://nvcr.io/nvidia/pytorch:24.01-py3"),
        ("docker:ubuntu:22.04", "write docker://ubuntu:22.04"),
        ("https://nvcr.io/nvidia/pytorch:24.01-py3", "write docker://nvcr.io/nvidia/pytorch:24.01-py3"),
        ("nvcr.io/nvidia/pytorch:24.01-py3", "write docker://nvcr.io/nvidia/pytorch:24.01-py3"),
        ("HOST:5000/team/x:v1", "write docker://HOST:5000/team/x:v1"),
        ("ubuntu", "write docker://ubuntu"),
        ("oci://folder", "write oci:folder"),
        ("docker-archive:///a/file.tar", "write docker-archive:/a/file.tar"),
        ("#" * 5000, "docker://HOST/NAME:TAG"),
        ("x" * 5000, "docker://HOST/NAME:TAG"),
    ],
)
def test_a_source_in_another_form_gets_ours_as_advice(text: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        name_and_layers(text, tmp_path)
    assert hint in caught.value.hint


def test_a_path_alone_gets_its_kind_as_advice(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", [LAYER])
    with pytest.raises(ConfigError, match=f"write oci:{tmp_path}/layout"):
        name_and_layers(str(tmp_path / "layout"), tmp_path)
    write_docker_archive(tmp_path / "image.tar", [LAYER], tags=["demo:v1"])
    with pytest.raises(ConfigError, match=f"write docker-archive:{tmp_path}/image.tar"):
        name_and_layers(str(tmp_path / "image.tar"), tmp_path)
