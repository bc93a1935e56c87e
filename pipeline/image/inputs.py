"""What an image is built from, as fingerprints: the build key, and what changed between two builds.

``gather`` reads files; everything else here is pure. A release record carries ``BuildInputs.record()`` under
``provenance.inputs``, so that a later plan can say which file or argument is another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pipeline.config.types import ImageSpec, ScanPolicy, VexPolicy
from pipeline.errors import ConfigError
from pipeline.image.context import fingerprints
from pipeline.image.dockerignore import Ignore
from pipeline.oci.digest import Digest
from pipeline.store.record import mapping
from pipeline.system.untrusted import read_regular
from pipeline.text import short, shown

KEY_VERSION = 1
_RECORDED_FILES = 400
_RECORDED_HEX = 16
_RECORDED_DOCKERFILE = 64 << 10  # characters
_LIMIT = 4 << 20  # bytes of a Dockerfile or a file of waivers
_MAX_TOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """Fingerprints of all that a build depends on.

    ``dockerfile`` is a sha256 in hex; ``dockerfile_text`` is what people compare, and no part of the key.
    ``context`` maps each path that the builder is sent (relative, with /) to its fingerprint: ``x:`` or
    ``-:`` and sha256 for a file, ``l:`` and target for a link, ``d`` for a folder. The Dockerfile itself is
    in it only where ``dockerfile`` does not say all: ``!`` when it is not sent, ``x`` when it is executable.
    ``period`` counts the spec's ``max_age`` since 1970, None without one: a new period is another build of
    the same files, so that package updates arrive, and one on all machines.
    """

    base: Digest
    dockerfile: str
    context: Mapping[str, str]
    args: Mapping[str, str]
    target: str | None
    platform: str
    period: int | None = None
    compression: str | None = None
    dockerfile_text: str = ""

    @property
    def key(self) -> str:
        """The build key: sha256 in hex over all of it, the same on every machine."""
        text = json.dumps(
            {
                "version": KEY_VERSION,
                "base": str(self.base),
                "dockerfile": self.dockerfile,
                "context": sorted(self.context.items()),
                "args": sorted(self.args.items()),
                "target": self.target,
                "platform": self.platform,
                "period": self.period,
                **self._compression(),
            },
            separators=(",", ":"),
            ensure_ascii=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """A bounded JSON value for the release record; a large context is recorded folder by folder."""
        depth = _recorded_depth(self.context)
        short_enough = 0 < len(self.dockerfile_text) <= _RECORDED_DOCKERFILE
        return {
            "version": KEY_VERSION,
            "dockerfile": self.dockerfile,
            **({"dockerfile_text": self.dockerfile_text} if short_enough else {}),
            "context_depth": depth,
            "context": _folded(self.context, depth),
            "args": dict(sorted(self.args.items())),
            "target": self.target,
            "platform": self.platform,
            "period": self.period,
            **self._compression(),
        }

    def _compression(self) -> dict[str, str]:
        """Nothing where images.yaml has no such key: the keys of builds from before stay the same."""
        return {} if self.compression is None else {"compression": self.compression}


def gather(
    spec: ImageSpec, base: Digest, *, now: datetime | None = None, copy_to: Path | None = None
) -> BuildInputs:
    """Fingerprint the Dockerfile and the context of ``spec``, built on ``base`` (the platform's manifest).

    ``now`` matters to images with a ``max_age`` only. With ``copy_to``, a folder that is not there yet, the
    bytes of the context that are fingerprinted are also written there, for the builder. Raises ConfigError
    for a spec without a Dockerfile and for a file that cannot be read; ToolError for a disk that is full.
    """
    if spec.dockerfile is None or spec.context is None:
        raise ConfigError(f"{spec.name} has no dockerfile: there is nothing to build")
    content = read_dockerfile(spec.dockerfile)
    dockerfile = hashlib.sha256(content).hexdigest()
    context = fingerprints(spec.context, Ignore.of(spec.dockerfile, spec.context), copy_to=copy_to)
    own = _inside(spec.dockerfile, spec.context)
    if own is not None:
        _take_out(context, own, dockerfile, spec.dockerfile)
    return BuildInputs(
        base=base,
        dockerfile=dockerfile,
        context=context,
        args=dict(spec.build_args),
        target=spec.target,
        platform=str(spec.platform),
        period=_period(spec.max_age, now or datetime.now(timezone.utc)),
        compression=spec.compression,
        dockerfile_text=content.decode(errors="backslashreplace"),
    )


def read_dockerfile(path: Path) -> bytes:
    """The bytes of a Dockerfile, which may be a symlink. Raises ConfigError, also for a pipe or a device."""
    try:
        return read_regular(os.path.realpath(path), limit=_LIMIT)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", hint="images.yaml names it") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def dockerfile_text(raw: bytes, path: Path) -> str:
    """The text of a Dockerfile. Raises ConfigError for bytes that are not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _take_out(context: dict[str, str], own: str, sha256: str, path: Path) -> None:
    """Leave in ``context`` what the Dockerfile's fingerprint does not say: ``!`` where it is not sent."""
    found = context.pop(own, None)
    if found is None:
        context[own] = "!"
    elif found[2:] != sha256:
        raise ConfigError(f"{path} changed while it was read", hint="run the same command again")
    elif found.startswith("x:"):
        context[own] = "x"


def scan_policy(policy: ScanPolicy) -> dict[str, Any]:
    """What decides over an image's findings, for the release record, so that a later plan can show what
    changed.

    Of the waivers it is the file's fingerprint, None when there is no such file.
    """
    waivers = policy.waivers
    return {
        "scanner": policy.scanner,
        "fail_on": policy.fail_on,
        "new_since_base": policy.new_since_base,
        "fixable_only": policy.fixable_only,
        "ignore_packages": sorted(policy.ignore_packages),
        "waivers": _waivers(waivers),
        **_vex(policy.vex),
    }


def _vex(policy: VexPolicy) -> dict[str, Any]:
    """Nothing where no VEX counts, so that records from before say the same."""
    if policy == VexPolicy():
        return {}
    days = policy.max_age.total_seconds() / 86400
    files = {path.name: _waivers(path) for path in sorted(policy.files)}
    return {"vex": {"files": files, "attached": policy.attached, "max_age_days": days}}


def explain(recorded: Mapping[str, Any], base: Digest | None, now: BuildInputs) -> tuple[str, ...]:
    """Why ``now`` is another build than the ``recorded`` one on ``base``: one short sentence a change.

    Empty when nothing differs, or when the record does not say enough (an older or an outside release).
    """
    changes: list[str] = []
    if base is not None and base != now.base:
        changes.append(f"base {short(base)} -> {short(now.base)}")
    if recorded.get("version") != KEY_VERSION:
        return tuple(changes)
    if recorded.get("dockerfile") != now.dockerfile:
        changes.append("Dockerfile changed")
    changes += _differences("argument", mapping(recorded.get("args")), now.args, values=True)
    if recorded.get("target") != now.target:
        changes.append(f"target {recorded.get('target')} -> {now.target}")
    if recorded.get("platform") != now.platform:
        changes.append(f"platform {recorded.get('platform')} -> {now.platform}")
    if recorded.get("period") != now.period:
        changes.append("older than max_age" if now.period is not None else "max_age is no longer set")
    if recorded.get("compression") != now.compression:
        changes.append(f"compression {recorded.get('compression')} -> {now.compression}")
    depth = recorded.get("context_depth")
    folded = _folded(now.context, depth if isinstance(depth, int) else None)
    files = _differences("context", mapping(recorded.get("context")), folded, values=False)
    if len(files) > _MAX_TOLD:
        files[_MAX_TOLD:] = [f"{len(files) - _MAX_TOLD} more files of the context"]
    return tuple(changes + files)


def _period(max_age: timedelta | None, now: datetime) -> int | None:
    return None if max_age is None else int(now.timestamp() // max_age.total_seconds())


def _differences(word: str, old: Mapping[str, str], new: Mapping[str, str], *, values: bool) -> list[str]:
    changes = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None:
            changes.append(f"{word} {shown(name)} is new")
        elif after is None:
            changes.append(f"{word} {shown(name)} was removed")
        else:
            changes.append(f"{word} {shown(name)} {shown(f'{before} -> {after}') if values else 'changed'}")
    return changes


def _recorded_depth(context: Mapping[str, str]) -> int | None:
    """None when each file can be recorded; else how many leading folders are kept apart."""
    if len(context) <= _RECORDED_FILES:
        return None
    deepest = max(path.count("/") for path in context) + 1
    for depth in range(deepest, 0, -1):
        if len({tuple(path.split("/")[:depth]) for path in context}) <= _RECORDED_FILES:
            return depth
    return 0


def _folded(context: Mapping[str, str], depth: int | None) -> dict[str, str]:
    """Short fingerprints by path, or by the first ``depth`` parts of the path."""
    groups: dict[str, list[str]] = {}
    for path in sorted(context):
        name = path if depth is None else "/".join(path.split("/")[:depth])
        # a record is UTF-8, a name need not be: its other bytes are written as \xNN
        name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        groups.setdefault(name or ".", []).append(f"{path}\0{context[path]}")
    return {
        name: hashlib.sha256("\n".join(members).encode(errors="surrogateescape")).hexdigest()[:_RECORDED_HEX]
        for name, members in groups.items()
    }


def _inside(dockerfile: Path, context: Path) -> str | None:
    """The Dockerfile's path within the context, or None when it stands outside."""
    try:
        return dockerfile.resolve().relative_to(context.resolve()).as_posix()
    except ValueError:
        return None


def _waivers(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        content = read_regular(os.path.realpath(path), limit=_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest()[:_RECORDED_HEX]
