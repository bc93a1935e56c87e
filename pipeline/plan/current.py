"""Is a release current? The one answer, for the plan, for a refresh and for the path itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pipeline.config.names import Version
from pipeline.config.types import ConvertOptions, ImageSpec
from pipeline.errors import FormatError, PublishError
from pipeline.image import inputs as build_inputs
from pipeline.image.inputs import BuildInputs
from pipeline.oci.digest import Digest
from pipeline.store.events import moment
from pipeline.store.record import Release, mapping
from pipeline.store.store import Store
from pipeline.text import short

_OPTIONS = ("compressor", "zstd_level", "block_size", "keep_owners", "keep_xattrs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What the record of a release says about how it was made; ``size`` in bytes."""

    version: Version
    state: str
    source: Digest | None
    base: Digest | None
    build_key: str | None
    inputs: Mapping[str, Any]
    converter: str | None
    options: Mapping[str, Any]
    size: int
    created: datetime
    scan_policy: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, release: Release) -> ReleaseFacts:
        converter: Mapping[str, Any] = release.converter or {}
        return cls(
            version=Version(release.version),
            state=release.state,
            source=_digest(release.source),
            base=_digest(release.base),
            build_key=release.keys.get("build") or None,
            inputs=mapping(release.provenance.get("inputs")),
            converter=converter.get("name"),
            options=mapping(converter.get("options")),
            scan_policy=mapping(release.provenance.get("scan_policy")),
            size=release.size,
            created=moment(release.created),
        )


def image_key(spec: ImageSpec, base: Digest | None, inputs: BuildInputs | None) -> str | None:
    """What identifies the image: the build key, or the base's digest in hex for a mirrored one."""
    if spec.mirrored:
        return base.hex if base else None
    return inputs.key if inputs else None


def is_same_image(
    facts: ReleaseFacts, spec: ImageSpec, base: Digest | None, inputs: BuildInputs | None
) -> bool:
    """Whether the release was made from the image that the sources mean now."""
    if spec.mirrored:
        return facts.source is not None and facts.source == base
    return facts.build_key is not None and facts.build_key == image_key(spec, base, inputs)


def image_changes(
    facts: ReleaseFacts | None, spec: ImageSpec, base: Digest | None, inputs: BuildInputs | None
) -> tuple[str, ...]:
    """Why the OCI image must be another one than the release's, a sentence each; empty when it is not."""
    if facts is None:
        return ("no release yet",)
    if is_same_image(facts, spec, base, inputs):
        return ()
    if inputs is None:
        old = facts.base or facts.source
        return (f"base {short(old) if old else 'unknown'} -> {short(base)}",)
    reasons = build_inputs.explain(facts.inputs, facts.base, inputs)
    return reasons or (f"{facts.version} was made from inputs that its record does not name",)


def option_changes(facts: ReleaseFacts, options: ConvertOptions) -> tuple[str, ...]:
    """Which conversion options differ from those of the release; ``auto`` accepts whatever was used."""
    changes = []
    if options.converter not in ("auto", facts.converter):
        changes.append(f"converter {facts.converter} -> {options.converter}")
    for name in _OPTIONS:
        before, after = facts.options.get(name), getattr(options, name)
        if before is not None and before != after:
            changes.append(f"{name} {before} -> {after}")
    return tuple(changes)


def published(
    spec: ImageSpec, version: Version, base: Digest, inputs: BuildInputs | None, store: Store
) -> Release | None:
    """The release of these sources as `version`, if it is there.

    Raises PublishError when the version is published with other content, or was yanked.
    """
    there = store.release(spec.name, version, str(spec.platform))
    if there is None:
        return None
    facts = ReleaseFacts.of(there)
    if inputs is not None:  # max_age asks for a new version; it never invalidates this one
        inputs = replace(inputs, period=facts.inputs.get("period"))
    changes = (*image_changes(facts, spec, base, inputs), *option_changes(facts, spec.convert))
    if changes:
        free = _next_version(spec, version, store)
        raise PublishError(
            f"{there.name} was published at {there.created} with other content: {'; '.join(changes)}",
            hint=f"a published version never changes: choose the next one{free}",
        )
    if there.state == "yanked":
        raise PublishError(
            f"{there.name} was yanked", hint=f"sqshpipe yank --undo {there.name}, or choose another version"
        )
    return there if there.state == "published" else None


def _next_version(spec: ImageSpec, version: Version, store: Store) -> str:
    """``, as in --tag v1.3`` where the last number of `version` can be counted on; else nothing."""
    numbered = re.fullmatch(r"(.*?)(\d{1,9})", version)
    if numbered is None:
        return ""
    number = int(numbered[2]) + 1
    while store.release(spec.name, f"{numbered[1]}{number}", str(spec.platform)) is not None:
        number += 1
    return f", as in --tag {numbered[1]}{number}"


def _digest(named: Mapping[str, str] | None) -> Digest | None:
    try:
        return Digest.parse(named["digest"]) if named and named.get("digest") else None
    except FormatError:
        return None
