from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform


def test_a_digest_reads_and_writes_and_checks() -> None:
    digest = Digest.of(b"hello")
    assert Digest.parse(str(digest)) == digest
    digest.check(b"hello", "the blob")
    with pytest.raises(FormatError, match="the blob has digest"):
        digest.check(b"other", "the blob")
    assert Digest.parse("sha512:" + "0" * 128).hasher().name == "sha512"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 63 + "\n",
        "../sha256:" + "a" * 64,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        Digest.parse(text)


def test_platforms() -> None:
    amd64 = Platform.parse("linux/x86_64")
    assert str(amd64) == "linux/amd64"
    assert amd64.matches(Platform(os="linux", architecture="amd64", variant="v3"))
    assert not Platform.parse("linux/amd64/v3").matches(amd64)
    assert Platform.parse("linux/arm64/v8").matches(Platform.parse("linux/arm64"))
    assert not amd64.matches(Platform.parse("windows/amd64"))
    for bad in ("amd64", "", "linux/", "a/b/c/d", "linux/am d"):
        with pytest.raises(ConfigError):
            Platform.parse(bad)
