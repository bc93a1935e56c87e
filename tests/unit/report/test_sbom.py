"""SBOMs as syft and trivy write them, and what is no SBOM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.report.sbom import parse_sbom


def _written(**more: Any) -> bytes:
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", **more}).encode()


def test_packages_are_called_as_those_that_are_read_from_an_image() -> None:
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
    assert parse_sbom(_written(components=components), "sbom").packages == {
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
def test_the_tool_is_known_in_either_form(tools: Any) -> None:
    assert parse_sbom(_written(metadata={"tools": tools}), "sbom").tools == ("syft",)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bomFormat": "SPDX"}', '{"a": 1, "a": 2}', "\xff"])
def test_what_is_no_sbom_is_one_sentence(text: str) -> None:
    with pytest.raises(FormatError, match=r"sbom\.cdx\.json"):
        parse_sbom(text.encode("latin-1"), "sbom.cdx.json")


def test_one_that_is_nested_without_end() -> None:
    text = '{"bomFormat": "CycloneDX", "components": ' + "[" * 10_000 + "]" * 10_000 + "}"
    with pytest.raises(FormatError, match="deep"):
        parse_sbom(text.encode(), "deep")
