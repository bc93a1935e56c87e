"""Which images a change of the sources touches, and why: what ``plan --changed-since`` chooses.

Only the sources are looked at: the checkout now, and images.yaml and images.lock as they were. Nothing is
asked of registry or store, so that it also works where neither can be reached (pull requests from forks).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import yamlfile
from pipeline.config.lock import Lock, parse_lock, read_lock
from pipeline.config.reading import build
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import ConfigError
from pipeline.github.git import Checkout
from pipeline.image.dockerignore import Ignore
from pipeline.text import short, shown

_COMPARED = (
    "base",
    "platform",
    "dockerfile",
    "context",
    "build_args",
    "secrets",
    "target",
    "convert",
    "scan",
    "max_age",
    "test",
)
_MAX_FILES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """An image that a change touches, with a short sentence a reason."""

    image: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Past:
    """images.yaml and images.lock at the earlier revision.

    ``config`` is None where the two revisions cannot be compared; ``reason`` then says why. ``moved``: the
    registry or the store is another one now.
    """

    config: Config | None
    lock: Lock
    reason: str = ""
    moved: bool = False


def affected_since(config: Config, revision: str, *, exact: bool = False) -> tuple[Affected, ...]:
    """The images of ``config`` that differ from where HEAD left ``revision``, in the file's order.

    With ``exact`` they are compared with ``revision`` itself, which a push has replaced; all images are
    affected when git does not know it (a force push may have removed it). Raises ConfigError outside of a
    checkout, and without ``exact`` for a revision that git does not know here.
    """
    checkout = Checkout.around(config.path.resolve().parent)
    commit = checkout.known(revision) if exact else checkout.branched_from(revision)
    if commit is None:
        reason = "the earlier commit is not known" if exact else "there is no earlier commit"
        return tuple(Affected(image=name, reasons=(reason,)) for name in config.images)
    changed = frozenset(_itself(path) for path in checkout.changed_since(commit))
    past = _past(config, checkout, commit)
    lock = read_lock(config.lock_path)
    found = []
    for spec in config.images.values():
        reasons = (
            *_settings(spec, config, past),
            *_locked(spec, lock, past),
            *_files(spec, changed),
        )
        if reasons:
            found.append(Affected(image=spec.name, reasons=reasons))
    return tuple(found)


def _past(config: Config, checkout: Checkout, commit: str) -> _Past:
    raw = checkout.content(commit, config.path)
    locked = checkout.content(commit, config.lock_path)
    try:
        lock = parse_lock(locked, config.lock_path) if locked else Lock()
    except ConfigError:
        lock = Lock()
    if raw is None:
        return _Past(config=None, lock=lock, reason=f"{config.path.name} is new")
    try:
        # The same environment as now: an override is not a change of the sources.
        old = build(yamlfile.parse(raw, config.path), os.environ, check_files=False)
    except ConfigError:
        return _Past(config=None, lock=lock, reason=f"{config.path.name} could not be read before")
    now = build(yamlfile.read(config.path), os.environ, check_files=False)
    return _Past(config=old, lock=lock, moved=(old.registry, old.store) != (now.registry, now.store))


def _settings(spec: ImageSpec, config: Config, past: _Past) -> Iterator[str]:
    if past.config is None:
        yield past.reason
        return
    old = past.config.images.get(spec.name)
    if old is None:
        yield f"{config.path.name}: {spec.name} is new"
        return
    for name in _COMPARED:
        if getattr(old, name) != getattr(spec, name):
            yield f"{config.path.name}: {name} changed"
    if past.moved:
        yield f"{config.path.name}: registry or store changed"


def _locked(spec: ImageSpec, lock: Lock, past: _Past) -> Iterator[str]:
    before, now = (held.get(spec.base, spec.platform) for held in (past.lock, lock))
    if before is None and now is None:
        return
    if before is None or now is None or before.digest != now.digest:
        was = short(before.digest) if before else "not locked"
        then = short(now.digest) if now else "not locked"
        yield f"images.lock: {spec.base} {was} -> {then}"


def _files(spec: ImageSpec, changed: frozenset[Path]) -> Iterator[str]:
    for file in filter(None, (spec.scan.waivers, *spec.scan.vex.files)):
        if _either(file) & changed:
            yield f"{file.name} changed"
    if spec.dockerfile is None or spec.context is None:
        return
    dockerfile, context = spec.dockerfile.resolve(), spec.context.resolve()
    ignore = Ignore.of(dockerfile, context)
    own = {name for path in (spec.dockerfile, *Ignore.files(dockerfile, context)) for name in _either(path)}
    changed_names = [path.name for path in sorted(own & changed)]
    inside = (path.relative_to(context) for path in sorted(changed - own) if path.is_relative_to(context))
    changed_names += [path.as_posix() for path in inside if not ignore.matches(path.as_posix())]
    yield from (f"{shown(name)} changed" for name in changed_names[:_MAX_FILES])
    if len(changed_names) > _MAX_FILES:
        yield f"{len(changed_names) - _MAX_FILES} more files changed"


def _itself(path: Path) -> Path:
    """A link by its own name: it is the link that git tracks and a context has, not what it leads to."""
    return path.parent.resolve() / path.name


def _either(path: Path) -> set[Path]:
    """Where a file is read, and where it lies: either may be what changed."""
    return {_itself(path), path.resolve()}
