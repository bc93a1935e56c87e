"""Where a release comes from, as an in-toto statement with SLSA provenance. Pure: the record says it all.

Formats: in-toto attestation framework, Statement v1; SLSA provenance v1 (slsa.dev/spec/v1.0/provenance).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.store.record import Record, mapping

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://sqshpipe.dev/build/v1"
MEDIA_TYPE = "application/vnd.in-toto+json"


def statement(record: Record, *, builder: str = "") -> dict[str, Any]:
    """The statement about the release's .sqsh; ``builder`` names who ran it (a workflow's address, a
    host)."""
    inputs = mapping(record.provenance.get("inputs"))
    version = record.provenance.get("sqshpipe")
    return {
        "_type": STATEMENT,
        "subject": [{"name": f"{record.image}-{record.version}.sqsh", "digest": {"sha256": record.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "image": record.image,
                    "version": record.version,
                    "platform": record.platform,
                    "buildArgs": dict(mapping(inputs.get("args"))),
                    "target": inputs.get("target"),
                },
                "internalParameters": {
                    "keys": dict(record.keys),
                    "converter": dict(record.converter or {}),
                    "scan": dict(record.scan),
                    "checks": list(record.checks),
                },
                "resolvedDependencies": _dependencies(record, inputs),
            },
            "runDetails": {
                "builder": {"id": builder or "sqshpipe", "version": {"sqshpipe": version or "unknown"}},
                "metadata": {"finishedOn": record.created},
            },
        },
    }


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """The same bytes for the same statement."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # in JSON the escape of a lone surrogate


def _dependencies(record: Record, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if record.base:
        uri = f"docker://{record.base.get('reference', '')}"
        found.append({"name": "base", "uri": uri, "digest": _digest(record.base)})
    if record.source:
        digest = record.source.get("digest", "")
        uri = f"docker://{record.source.get('repository', '')}@{digest}"
        found.append({"name": "image", "uri": uri, "digest": _digest(record.source)})
    if inputs.get("dockerfile"):
        found.append({"name": "Dockerfile", "digest": {"sha256": str(inputs["dockerfile"])}})
    revision = record.provenance.get("revision")
    if revision:
        found.append({"name": "source", "digest": {"gitCommit": str(revision)}})
    return found


def _digest(entry: Mapping[str, str]) -> dict[str, str]:
    algorithm, _, value = entry.get("digest", "").partition(":")
    return {algorithm: value} if value else {}
