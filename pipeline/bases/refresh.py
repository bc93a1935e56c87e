"""Refresh: finds bases whose tag moved or has a newer one, and writes them into images.yaml and images.lock.

Registries are asked side by side; one that is down costs only the bases that lie there. Everything is decided
before anything is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pipeline.bases import clients as bases
from pipeline.config.lock import Lock, render_lock
from pipeline.config.names import Version, check_version
from pipeline.config.reading import load
from pipeline.config.tag_pattern import Pattern
from pipeline.config.types import Config, ImageSpec
from pipeline.config.yamlfile import Document, read
from pipeline.errors import ConfigError, PublishError, SqshpipeError
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.tags import known_tags
from pipeline.system.atomic import replace as replace_file
from pipeline.system.parallel_reads import each
from pipeline.text import markdown

Kind = Literal["moved", "locked", "newer", "announced"]
_WORKERS = 32
_SHORT = len("sha256:") + 12


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChange:
    """One thing that is new about a base.

    ``moved``: its tag stands for another digest. ``locked``: it was not locked before. ``newer``: a newer tag
    is taken. ``announced``: there is a newer tag, and the policy is only to report it.
    """

    kind: Kind
    base: Reference
    platform: str
    images: tuple[str, ...]
    old: str
    new: str

    @property
    def reason(self) -> str:
        """One short sentence."""
        if self.kind == "moved":
            return f"{self.base} moved from {self.old[:_SHORT]} to {self.new[:_SHORT]}"
        if self.kind == "locked":
            return f"{self.base} is locked at {self.new[:_SHORT]}"
        if self.kind == "newer":
            return f"{self.base} gives way to the newer tag {self.new}"
        return f"{self.base} has a newer tag, {self.new}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A base that could not be checked, and why; its entry in images.lock stays unchanged."""

    base: Reference
    images: tuple[str, ...]
    error: SqshpipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshResult:
    """What a refresh found: the changes, what could not be asked, and the sources as they should be."""

    changes: tuple[BaseChange, ...]
    problems: tuple[Problem, ...]
    lock: Lock
    tags: Mapping[str, str]

    @property
    def taken(self) -> tuple[BaseChange, ...]:
        """The changes that alter the sources."""
        return tuple(change for change in self.changes if change.kind != "announced")

    @property
    def images(self) -> tuple[str, ...]:
        """The images that are rebuilt because of them."""
        return tuple(sorted({name for change in self.taken for name in change.images}))


def look(
    config: Config,
    lock: Lock,
    client_for: Callable[[str], RegistryClient],
    *,
    now: datetime | None = None,
) -> RefreshResult:
    """Ask for all bases of ``config``; writes nothing. Failures become `Problem`s."""
    specs = tuple(config.images.values())
    newer, unlisted = _newer(specs, client_for, config.cache / "tags")
    tags = {name: tag for name, tag in newer.items() if _policy(config.image(name)) == "newest"}
    wanted = tuple(
        replace(spec, base=spec.base.with_tag(tags[spec.name])) if spec.name in tags else spec
        for spec in specs
    )
    answers = bases.ask(wanted, lock, client_for, now=now)
    failed = {answer.reference for answer in answers if answer.problem}
    problems = [
        problem for problem in unlisted if problem.base not in failed
    ]  # a registry that is down: once
    tags = {name: tag for name, tag in tags.items() if config.image(name).base.with_tag(tag) not in failed}
    changes = [*_announced(specs, newer, tags), *_followed(answers, lock, config, tags)]
    problems += [
        Problem(base=answer.reference, images=answer.images, error=answer.problem)
        for answer in answers
        if answer.problem is not None
    ]
    kept = bases.relocked(lock, answers)
    used = ((spec.base.with_tag(tags.get(spec.name, spec.base.tag)), spec.platform) for spec in specs)
    return RefreshResult(changes=tuple(changes), problems=tuple(problems), lock=kept.only(used), tags=tags)


def sources(config: Config, found: RefreshResult) -> dict[Path, bytes]:
    """What images.yaml and images.lock should say; only those that change.

    Raises ConfigError when a base's line in images.yaml cannot be changed by itself.
    """
    wanted = {config.lock_path: render_lock(found.lock).encode()}
    if found.tags:
        wanted[config.path] = retagged(read(config.path), config, found.tags).encode()
    return {
        path: content for path, content in wanted.items() if not path.exists() or path.read_bytes() != content
    }


def write(contents: Mapping[Path, bytes]) -> None:
    """Put `sources` into the work tree, each file whole. ConfigError when it cannot be written."""
    try:
        for path, content in contents.items():
            replace_file(path, content)
    except (OSError, PublishError) as error:
        raise ConfigError(f"the refreshed sources cannot be written: {error}") from error


def retagged(source: Document, config: Config, tags: Mapping[str, str]) -> str:
    """The text of images.yaml with other tags for the bases of some images, otherwise unchanged."""
    lines = source.path.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, tag in tags.items():
        given = str(source.value["images"][name]["base"])
        old = config.image(name).base.tag or ""
        number = source.line(("images", name, "base")) - 1
        if given not in lines[number] or not given.endswith(f":{old}"):
            raise source.error(
                ("images", name, "base"),
                f"cannot be changed to {tag} by itself",
                f"write {given.removesuffix(old)}{tag} there",
            )
        lines[number] = lines[number].replace(given, given.removesuffix(old) + tag, 1)
    return "".join(lines)


def reload(config: Config) -> Config:
    """The configuration after `write`, with the same store and registry."""
    fresh = load(config.path)
    return replace(fresh, registry=config.registry, store=config.store)


def pull_request(found: RefreshResult) -> tuple[str, str]:
    """Title and text (Markdown) that say what changes and why."""
    taken = found.taken
    title = f"Refresh bases: {taken[0].reason}" if len(taken) == 1 else f"Refresh {len(taken)} bases"
    lines = ["Found by `sqshpipe refresh`.", "", "| base | was | is | images |", "|---|---|---|---|"]
    lines += [
        f"| `{change.base}` {change.platform} | `{change.old or 'not locked'}` | `{change.new}` "
        f"| {', '.join(change.images)} |"
        for change in taken
    ]
    also = [change.reason for change in found.changes if change.kind == "announced"]
    also += [f"not looked at: {problem.base}: {problem.error.headline}" for problem in found.problems]
    if also:
        lines += ["", "Also:", "", *(f"- {markdown(line)}" for line in also)]
    return title, "\n".join(lines) + "\n"


def next_version(
    spec: ImageSpec, taken: Callable[[Version], bool], *, now: datetime | None = None
) -> Version:
    """The base's tag, the date and the first counter that is free: ``24.01-py3-20260131.1``."""
    day = (now or datetime.now(timezone.utc)).strftime("%Y%m%d")
    stem = f"{(spec.base.tag or 'base')[:100]}-{day}"
    versions = (check_version(f"{stem}.{counter}") for counter in itertools.count(1))
    return next(version for version in versions if not taken(version))


def _policy(spec: ImageSpec) -> str:
    return spec.track.policy if spec.track else ""


def _newer(
    specs: Iterable[ImageSpec], client_for: Callable[[str], RegistryClient], cache: Path
) -> tuple[dict[str, str], list[Problem]]:
    """For each image whose base has a newer tag that fits its pattern: that tag."""
    tracked = [spec for spec in specs if spec.track is not None and spec.base.tag is not None]
    repositories = sorted({(spec.base.registry, spec.base.repository) for spec in tracked})
    if not repositories:
        return {}, []

    def listed(repository: tuple[str, str]) -> list[str] | SqshpipeError:
        try:
            return known_tags(client_for(repository[0]), repository[1], cache)
        except SqshpipeError as error:
            return error

    found = dict(zip(repositories, each(listed, repositories, workers=_WORKERS), strict=True))
    newer: dict[str, str] = {}
    problems: dict[Reference, Problem] = {}
    for spec in tracked:
        tags = found[spec.base.registry, spec.base.repository]
        if isinstance(tags, SqshpipeError):
            others = problems[spec.base].images if spec.base in problems else ()
            problems[spec.base] = Problem(base=spec.base, images=(*others, spec.name), error=tags)
        elif spec.track is not None:
            tag = Pattern.parse(spec.track.pattern).newer(spec.base.tag or "", tags)
            if tag is not None:
                newer[spec.name] = tag
    return newer, list(problems.values())


def _announced(
    specs: Iterable[ImageSpec], newer: Mapping[str, str], tags: Mapping[str, str]
) -> Iterable[BaseChange]:
    for spec in specs:
        if spec.name in newer:
            yield BaseChange(
                kind="newer" if spec.name in tags else "announced",
                base=spec.base,
                platform=str(spec.platform),
                images=(spec.name,),
                old=spec.base.tag or "",
                new=newer[spec.name],
            )


def _followed(
    answers: Iterable[bases.BaseAnswer], lock: Lock, config: Config, tags: Mapping[str, str]
) -> Iterable[BaseChange]:
    fresh = {config.image(name).base.with_tag(tag) for name, tag in tags.items()}
    for answer in answers:
        if answer.now is None or not answer.moved or (answer.reference in fresh and answer.locked is None):
            continue
        held = lock.get(answer.reference, answer.platform)
        yield BaseChange(
            kind="moved" if held else "locked",
            base=answer.reference,
            platform=str(answer.platform),
            images=answer.images,
            old=str(held.digest) if held else "",
            new=str(answer.now.digest),
        )
