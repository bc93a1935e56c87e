"""What an image is built from, as fingerprints: the build key, and what changed between two builds.

``gather`` reads files; everything else here is pure. A release record carries ``BuildInputs.record()`` under
``provenance.inputs``, so that a later plan can say which file or argument is another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pipeline.config.types import ImageSpec, ScanPolicy
from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest

KEY_VERSION = 1
_RECORDED_FILES = 400
_RECORDED_HEX = 16
_BLOCK = 1 << 20
_MAX_TOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """Fingerprints of all that a build depends on.

    ``dockerfile`` is a sha256 in hex. ``context`` maps each path that the builder is sent (relative,
    with /) to its fingerprint: ``x:`` or ``-:`` and sha256 for a file, ``l:`` and target for a link,
    ``d`` for a folder. ``period`` counts the spec's ``max_age`` since 1970, None without one: a new period is
    another build of the same files, so that package updates arrive, and one on all machines.
    """

    base: Digest
    dockerfile: str
    context: Mapping[str, str]
    args: Mapping[str, str]
    target: str | None
    platform: str
    period: int | None = None

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
            },
            separators=(",", ":"),
            ensure_ascii=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """A bounded JSON value for the release record; a large context is recorded folder by folder."""
        depth = _recorded_depth(self.context)
        return {
            "version": KEY_VERSION,
            "dockerfile": self.dockerfile,
            "context_depth": depth,
            "context": _folded(self.context, depth),
            "args": dict(sorted(self.args.items())),
            "target": self.target,
            "platform": self.platform,
            "period": self.period,
        }


def gather(spec: ImageSpec, base: Digest, *, now: datetime | None = None) -> BuildInputs:
    """Fingerprint the Dockerfile and the context of ``spec``, built on ``base`` (the platform's manifest).

    ``now`` matters to images with a ``max_age`` only. Raises ConfigError for a spec without a Dockerfile
    and for a file that cannot be read.
    """
    if spec.dockerfile is None or spec.context is None:
        raise ConfigError(f"{spec.name} has no dockerfile: there is nothing to build")
    own = _inside(spec.dockerfile, spec.context)
    return BuildInputs(
        base=base,
        dockerfile=_file_sha256(spec.dockerfile),
        context={
            path: _fingerprint(f"{spec.context}/{path}")
            for path in context_paths(spec.dockerfile, spec.context)
            if path != own
        },
        args=dict(spec.build_args),
        target=spec.target,
        platform=str(spec.platform),
        period=_period(spec.max_age, now or datetime.now(timezone.utc)),
    )


def scan_policy(policy: ScanPolicy) -> dict[str, Any]:
    """What decides over an image's findings, for the release record: a later plan tells what is another.

    Of the waivers it is the file's fingerprint, None when there is no such file.
    """
    waivers = policy.waivers
    return {
        "scanner": policy.scanner,
        "fail_on": policy.fail_on,
        "new_since_base": policy.new_since_base,
        "fixable_only": policy.fixable_only,
        "ignore_packages": sorted(policy.ignore_packages),
        "waivers": _file_sha256(waivers)[:_RECORDED_HEX]
        if waivers is not None and waivers.is_file()
        else None,
    }


def context_paths(dockerfile: Path, context: Path) -> list[str]:
    """What the builder is sent: sorted paths in ``context``, folders included, after .dockerignore."""
    ignore = Ignore.of(dockerfile, context)
    if ignore.patterns:
        return sorted(ignore.walk(context))
    root = len(str(context))
    return sorted(
        f"{folder}/{name}"[root:].lstrip("/")
        for folder, folders, files in os.walk(context, onerror=_refuse)
        for name in (*folders, *files)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """What .dockerignore leaves out of a context, by the rules of the docker package.

    ``<Dockerfile>.dockerignore`` beside the Dockerfile wins over ``.dockerignore`` in the context, as in
    BuildKit. The Dockerfile itself is always sent.
    """

    patterns: tuple[str, ...]
    always: tuple[str, ...]

    @classmethod
    def of(cls, dockerfile: Path, context: Path) -> Ignore:
        """What applies to this build. ConfigError for a file of patterns that cannot be read or are none."""
        own = _inside(dockerfile, context)
        always = (f"!{own}",) if own is not None else ()
        for path in cls.files(dockerfile, context):
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} cannot be read: {error}") from error
            patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            found = cls(patterns=tuple(patterns), always=always)
            try:
                found.matches("any")
            except re.error as error:
                raise ConfigError(
                    f"{path} has a pattern that is none: {error}",
                    hint="in [a-z] the first character comes before the last",
                ) from error
            return found
        return cls(patterns=(), always=always)

    @staticmethod
    def files(dockerfile: Path, context: Path) -> tuple[Path, Path]:
        """Where the patterns may stand, the one that wins first; neither need exist."""
        return dockerfile.with_name(dockerfile.name + ".dockerignore"), context / ".dockerignore"

    def matches(self, path: str) -> bool:
        """Whether ``path``, relative to the context, is left out, or a folder that it is in."""
        if not self.patterns:
            return False
        return bool(self._matcher().matches(path))

    def walk(self, context: Path) -> Iterator[str]:
        """The paths of ``context`` that are sent. ConfigError for a folder that cannot be read."""
        try:
            for path in self._matcher().walk(str(context)):
                yield Path(path).as_posix()
        except OSError as error:
            _refuse(error)

    def _matcher(self) -> Any:  # the stubs want path objects, on which it fails
        # Imported here: it costs more than all the rest, and most contexts have no such file.
        from docker.utils.build import PatternMatcher

        return PatternMatcher([*self.patterns, *self.always])


def explain(recorded: Mapping[str, Any], base: Digest | None, now: BuildInputs) -> tuple[str, ...]:
    """Why ``now`` is another build than the ``recorded`` one on ``base``: one short sentence a change.

    Empty when nothing differs, or when the record does not say enough (an older or an outside release).
    """
    told: list[str] = []
    if base is not None and base != now.base:
        told.append(f"base {_short(str(base))} -> {_short(str(now.base))}")
    if recorded.get("version") != KEY_VERSION:
        return tuple(told)
    if recorded.get("dockerfile") != now.dockerfile:
        told.append("Dockerfile changed")
    told += _differences("argument", _mapping(recorded, "args"), now.args, values=True)
    if recorded.get("target") != now.target:
        told.append(f"target {recorded.get('target')} -> {now.target}")
    if recorded.get("platform") != now.platform:
        told.append(f"platform {recorded.get('platform')} -> {now.platform}")
    if recorded.get("period") != now.period:
        told.append("older than max_age" if now.period is not None else "max_age is no longer set")
    depth = recorded.get("context_depth")
    folded = _folded(now.context, depth if isinstance(depth, int) else None)
    files = _differences("context", _mapping(recorded, "context"), folded, values=False)
    if len(files) > _MAX_TOLD:
        files[_MAX_TOLD:] = [f"{len(files) - _MAX_TOLD} more files of the context"]
    return tuple(told + files)


def _period(max_age: timedelta | None, now: datetime) -> int | None:
    return None if max_age is None else int(now.timestamp() // max_age.total_seconds())


def _differences(word: str, old: Mapping[str, str], new: Mapping[str, str], *, values: bool) -> list[str]:
    told = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None:
            told.append(f"{word} {name} is new")
        elif after is None:
            told.append(f"{word} {name} is gone")
        else:
            told.append(f"{word} {name} {f'{before} -> {after}' if values else 'changed'}")
    return told


def _mapping(recorded: Mapping[str, Any], name: str) -> Mapping[str, str]:
    value = recorded.get(name)
    return value if isinstance(value, dict) else {}


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]


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
        # a record is UTF-8, a name need not be: its other bytes are told as \xNN
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


def _fingerprint(path: str) -> str:
    """Of one member of the context. Only the executable bit of the mode counts, since that is all that git
    keeps: two checkouts with another umask are one input.

    Plans ask for many thousands, which path objects would make take twice as long.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return "l:" + os.readlink(path)  # noqa: PTH115
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        return "d"
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{path} is a socket, pipe or device: no part of a build",
            hint="name it in .dockerignore",
        )
    return ("x:" if status.st_mode & 0o100 else "-:") + _file_sha256(path)


def _file_sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _refuse(error: OSError) -> None:
    raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
