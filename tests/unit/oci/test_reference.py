from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("ubuntu", "docker.io/library/ubuntu"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("index.docker.io/ubuntu", "docker.io/library/ubuntu"),
        ("docker.io/pytorch/pytorch", "docker.io/pytorch/pytorch"),
        ("nvcr.io/nvidia/pytorch:24.01-py3", "nvcr.io/nvidia/pytorch:24.01-py3"),
        ("localhost/x", "localhost/x"),
        ("localhost:5000/x:v1", "localhost:5000/x:v1"),
        ("[::1]:5000/x", "[::1]:5000/x"),
        ("Host/x", "Host/x"),
        ("a/b", "docker.io/a/b"),
        ("a__b/c---d/e.f", "docker.io/a__b/c---d/e.f"),
        (f"x:tag@sha256:{HEX}", f"docker.io/library/x:tag@sha256:{HEX}"),
    ],
)
def test_a_name_is_completed_as_docker_does(text: str, full: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert Reference.parse(full) == reference


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "lower-case"),
        ("docker://ubuntu", "://"),
        ("nvcr.io#nvidia/pytorch:1", "nvcr.io/nvidia/pytorch:1"),
        ("$oauthtoken@nvcr.io#nvidia/pytorch:1", "nvcr.io/nvidia/pytorch:1"),
        ("nvcr.io/NVIDIA/pytorch", "nvidia/pytorch"),
        ("ubuntu:" + "x" * 129, "128"),
        ("ubuntu:-x", "tag"),
        ("a..b", "parted"),
        ("host:123456/x", "host:port"),
        (HEX, "NAME@"),
        ("x@md5:0123", "sha256"),
        ("x@sha256:short", ""),
        ("a/" * 200 + "a", ""),
        ("über", ""),
        ("ubuntu\n", ""),
    ],
)
def test_a_bad_name_is_refused_with_how_to_write_it(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reference.parse(text)
    assert hint in caught.value.hint


def test_tag_and_digest_can_be_exchanged() -> None:
    digest = Digest.of(b"x")
    reference = Reference.parse("host.example/a/b:v1")
    assert reference.name == "host.example/a/b"
    assert reference.identifier == "v1"
    assert reference.with_tag(None).identifier == "latest"
    assert reference.with_digest(digest).identifier == str(digest)
    assert reference.with_digest(digest).with_tag("v2") == Reference.parse("host.example/a/b:v2")


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("docker://nvcr.io#nvidia/pytorch:24.01-py3", "nvcr.io/nvidia/pytorch:24.01-py3"),
        ("HOST:5000#/team/x:v1", "HOST:5000/team/x:v1"),
        ("user@HOST:5000#team/x@sha256:" + "a" * 64, "HOST:5000/team/x@sha256:" + "a" * 64),
        ("https://quay.io/team/x", "quay.io/team/x"),
    ],
)
def test_names_in_another_form_get_ours_as_advice(text: str, better: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reference.parse(text)
    assert caught.value.hint.endswith(f"write {better}")


@pytest.mark.parametrize("text", ["#" * 10_000, "a#" * 10_000, "://" * 10_000, "docker://#", "#x", "a#b#c"])
def test_signs_without_a_name_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Reference.parse(text)
