"""What ended a build, or the publishing after it, in a traceback: a name in the context that is not UTF-8, a
range in .dockerignore whose end comes before its start, a SOURCE_DATE_EPOCH that is no time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.config.types import ImageSpec
from pipeline.errors import ConfigError
from pipeline.image.build import labels
from pipeline.image.inputs import explain, gather
from pipeline.image.pin import BaseImage
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

BASE = Digest.of(b"base")
LINUX = Platform.parse("linux/amd64")


@pytest.fixture
def spec(tmp_path: Path) -> ImageSpec:
    (tmp_path / "Dockerfile").write_text("FROM h.example/b:1\n")
    return ImageSpec(
        name="demo",
        base=Reference.parse("h.example/b:1"),
        platform=LINUX,
        dockerfile=tmp_path / "Dockerfile",
        context=tmp_path,
    )


def test_a_name_that_is_not_utf8_can_be_recorded(spec: ImageSpec, tmp_path: Path) -> None:
    name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    name.write_text("one")
    recorded = json.loads(json.dumps(gather(spec, BASE).record(), ensure_ascii=False).encode())
    assert list(recorded["context"]) == ["caf\\xe9"]
    assert explain(recorded, BASE, gather(spec, BASE)) == ()
    name.write_text("two")
    assert explain(recorded, BASE, gather(spec, BASE)) == ("context caf\\xe9 changed",)


def test_an_invalid_pattern_is_reported_with_its_file(spec: ImageSpec, tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("data\na[z-a]\n")
    with pytest.raises(ConfigError, match=r"dockerignore: a\[z-a\] is not a valid pattern"):
        gather(spec, BASE)


@pytest.mark.parametrize("epoch", ["\u00b2", "9" * 14, "9" * 30, "9" * 5000, "yesterday", "1e5"])
def test_an_invalid_time(epoch: str, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    base = BaseImage(reference=spec.base, digest=BASE, index_digest=None, platform=LINUX, locked=True)
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
        labels(spec, base, version="v1", revision=None)
