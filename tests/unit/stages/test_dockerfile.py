"""Pinning the base inside a Dockerfile: what counts as the base, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.stages.dockerfile import PinnedDockerfile, pin_base

DIGEST = Digest.of(b"base")
BASE = Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3").with_digest(DIGEST)
AT = f"nvcr.io/nvidia/pytorch@{DIGEST}"


def pin(text: str, base: Reference = BASE, **build_args: str) -> str:
    return pinned_with(text, base, build_args).text


def pinned_with(
    text: str, base: Reference = BASE, build_args: Mapping[str, str] | None = None
) -> PinnedDockerfile:
    return pin_base(text, base, build_args or {}, name="Dockerfile", platform=Platform.parse("linux/arm64"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM nvcr.io/nvidia/pytorch:24.01-py3\n", f"FROM {AT}\n"),
        ("from nvcr.io/nvidia/pytorch:24.01-py3", f"from {AT}"),
        (
            "FROM --platform=linux/amd64 nvcr.io/nvidia/pytorch:24.01-py3 AS a\n",
            f"FROM --platform=linux/amd64 {AT} AS a\n",
        ),
        (
            "# FROM x\n\nFROM nvcr.io/nvidia/pytorch:24.01-py3\r\nRUN x\r\n",
            f"# FROM x\n\nFROM {AT}\r\nRUN x\r\n",
        ),
        (f"FROM nvcr.io/nvidia/pytorch:24.01-py3@{DIGEST}\n", f"FROM {AT}\n"),
        (
            "FROM \\\n# why\n  nvcr.io/nvidia/pytorch:24.01-py3 \\\n AS a\n",
            f"FROM \\\n# why\n  {AT} \\\n AS a\n",
        ),
        ("# escape=`\nFROM `\nnvcr.io/nvidia/pytorch:24.01-py3\n", f"# escape=`\nFROM `\n{AT}\n"),
    ],
)
def test_the_base_is_put_in_by_digest(text: str, expected: str) -> None:
    assert pin(text) == expected


def test_arguments_before_from_count_with_the_values_of_build_args() -> None:
    text = 'ARG REPO="nvcr.io/nvidia"\nARG VERSION=23.01\nFROM ${REPO}/pytorch:${VERSION}-py3\nARG VERSION\n'
    assert pin(text, VERSION="24.01").splitlines()[2] == f"FROM {AT}"
    with pytest.raises(ConfigError, match=r"builds on nvcr\.io/nvidia/pytorch:23\.01-py3, but its base"):
        pin(text)


@pytest.mark.parametrize("image", ["$BASE_IMAGE", "${BASE_IMAGE}", "${BASE_IMAGE:-busybox}"])
def test_base_image_is_given_by_images_yaml(image: str) -> None:
    pinned = pinned_with(f"ARG BASE_IMAGE\nFROM {image}\n")
    assert pinned.text == f"ARG BASE_IMAGE\nFROM {AT}\n"
    assert pinned.takes_base


def test_an_argument_without_arg_has_no_value_in_from() -> None:
    with pytest.raises(ConfigError, match="its base in images"):
        pin("FROM ${BASE_IMAGE:-busybox}\n")


def test_stages_are_no_images_and_other_images_are_reported() -> None:
    text = (
        "FROM golang:1.22 AS tools\nRUN make\n"
        "FROM nvcr.io/nvidia/pytorch:24.01-py3 AS base\n"
        "FROM base\nCOPY --from=tools /x /x\nCOPY --from=0 /y /y\nCOPY --from=busybox:1 /bin/sh /z\n"
        "COPY --chown=1:1 --from=nvcr.io/nvidia/pytorch:24.01-py3 /opt /opt\n"
    )
    pinned = pinned_with(text)
    assert pinned.others == ("golang:1.22", "busybox:1")
    assert pinned.registries == ("docker.io",)
    assert pinned.text.splitlines()[3] == "FROM base"
    assert pinned.text.endswith(f"COPY --chown=1:1 --from={AT} /opt /opt\n")


def test_images_that_flags_name_are_seen_on_every_line() -> None:
    text = (
        "# syntax=registry.example.com/dockerfile:1\n"
        "FROM nvcr.io/nvidia/pytorch:24.01-py3\n"
        "RUN --mount=type=cache,target=/c \\\n  --mount=from=nvcr.io/nvidia/pytorch:24.01-py3,target=/m \\\n"
        "  # a comment\n  --mount=type=bind,from=tools.example.com/uv:1,target=/u make"
        " --mount=from=no.example/x\n"
        "COPY \\\n  --from=nvcr.io/nvidia/pytorch:24.01-py3 /a /a\n"
    )
    pinned = pinned_with(text)
    assert pinned.text.splitlines()[3] == f"  --mount=from={AT},target=/m \\"
    assert pinned.text.splitlines()[7] == f"  --from={AT} /a /a"
    assert pinned.others == ("tools.example.com/uv:1",)
    assert pinned.syntax == "registry.example.com/dockerfile:1"
    assert pinned.registries == ("tools.example.com", "registry.example.com")


def test_text_inside_here_documents_and_continued_lines_is_not_read() -> None:
    text = (
        "FROM nvcr.io/nvidia/pytorch:24.01-py3\n"
        "RUN <<EOF cat <<-'TWO'\nFROM nvcr.io/nvidia/pytorch:24.01-py3\nEOF\nFROM busybox\n\tTWO\n"
        "RUN echo \\\nFROM nvcr.io/nvidia/pytorch:24.01-py3\n"
    )
    assert pin(text) == f"FROM {AT}\n" + text.split("\n", 1)[1]


def test_docker_hub_names_are_the_same_however_long_they_are_spelled() -> None:
    base = Reference.parse("ubuntu:22.04").with_digest(DIGEST)
    for spelled in ("ubuntu:22.04", "library/ubuntu:22.04", "docker.io/library/ubuntu:22.04"):
        assert pin(f"FROM {spelled}\n", base) == f"FROM docker.io/library/ubuntu@{DIGEST}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RUN true\n",
        "FROM scratch\n",
        "FROM busybox\n",
        f"FROM nvcr.io/nvidia/pytorch@{Digest.of(b'x')}\n",
    ],
)
def test_a_dockerfile_on_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pin(text)
    assert "Dockerfile builds on" in caught.value.message
    assert "BASE_IMAGE" in caught.value.hint
