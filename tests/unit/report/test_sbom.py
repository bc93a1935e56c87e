"""SBOMs as syft and trivy write them, and what is no SBOM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.report.sbom import read_sbom


def _written(tmp_path: Path, **data: Any) -> Path:
    file = tmp_path / "sbom.cdx.json"
    file.write_text(json.dumps({"bomFormat": "CycloneDX", **data}))
    return file


def test_packages_are_called_as_those_that_are_read_from_an_image(tmp_path: Path) -> None:
    nested = {"type": "library", "name": "six", "version": "1.16", "purl": "pkg:pypi/six@1.16"}
    components = [
        {
            "name": "libc6",
            "version": "2.35-0ubuntu3",
            "purl": "pkg:deb/ubuntu/libc6@2.35?arch=amd64&distro=x",
        },
        {"name": "musl", "version": "1.2", "purl": "pkg:apk/alpine/musl@1.2"},
        {"name": "openssl", "purl": "pkg:rpm/rhel/openssl@1%3A3.0.7?epoch=1"},
        {"name": "Torch_X", "version": "2.1.0+cu121", "purl": "pkg:pypi/Torch_X@2.1.0%2Bcu121"},
        {"name": "net", "version": "v0.1", "purl": "pkg:golang/golang.org/x/net@v0.1#http2"},
        {"name": "core", "version": "7", "purl": "pkg:npm/%40babel/core@7"},
        {"type": "application", "name": "app", "version": "1", "components": [nested]},
        {"name": "six", "version": "1.15", "purl": "pkg:pypi/six@1.15"},
        {"type": "file", "name": "/etc/passwd"},
        {"type": "operating-system", "name": "ubuntu", "version": "22.04"},
        "no object",
        {"purl": ["no", "text"]},
    ]
    assert read_sbom(_written(tmp_path, components=components)).packages == {
        ("debian", "libc6"): "2.35-0ubuntu3",
        ("alpine", "musl"): "1.2",
        ("rpm", "openssl"): "1:3.0.7",
        ("python", "torch-x"): "2.1.0+cu121",
        ("golang", "golang.org/x/net"): "v0.1",
        ("npm", "@babel/core"): "7",
        ("python", "six"): "1.15, 1.16",
    }


@pytest.mark.parametrize(
    "tools",
    [[{"vendor": "v", "name": "syft", "version": "1"}], {"components": [{"name": "syft", "version": "2"}]}],
)
def test_the_tool_is_known_in_either_form(tmp_path: Path, tools: Any) -> None:
    assert read_sbom(_written(tmp_path, metadata={"tools": tools})).tools == ("syft",)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bomFormat": "SPDX"}', '{"a": 1, "a": 2}', "\xff"])
def test_what_is_no_sbom_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sbom.cdx.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"sbom\.cdx\.json"):
        read_sbom(file)


def test_one_that_cannot_be_read_and_one_that_is_nested_without_end(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        read_sbom(tmp_path / "none")
    file = tmp_path / "deep"
    file.write_text('{"bomFormat": "CycloneDX", "components": ' + "[" * 10_000 + "]" * 10_000 + "}")
    with pytest.raises(FormatError, match="deep"):
        read_sbom(file)
