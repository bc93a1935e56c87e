"""From a GitHub event to what is to be done: which images, under which version, published or only tried.

https://docs.github.com/en/webhooks/webhook-events-and-payloads describes the payloads. Pure, apart from the
question which images a range of commits touches, which the caller answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.errors import ConfigError

_SHORT = 8
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a workflow run does.

    ``publish``: release and move channels; otherwise build, scan, convert and verify only. ``trusted``: the
    run's code is the repository's own, so that it may ask AWS for credentials and use our runners.
    """

    images: tuple[str, ...]
    version: str
    publish: bool
    trusted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What Actions says of the run: the event's name and payload, ref, commit, and the commit's time."""

    name: str
    payload: Mapping[str, Any]
    ref: str
    sha: str
    committed: datetime


Affected = Callable[[str, bool], Sequence[str]]
"""The images that differ from a commit: from itself (True), or from where HEAD left its branch."""


def decide(run: Run, images: Sequence[str], affected: Affected) -> Wanted:
    """Which images to build for ``run``, as which version, and whether to publish them.

    ``images`` are the names of all images in images.yaml; ``affected`` gives those that differ from a commit.
    Raises ConfigError for an event that the workflow is not made for, and for an unknown image.
    """
    if run.name == "pull_request":
        return _pull_request(run, affected)
    if run.name == "workflow_dispatch":
        return _manual(run, images)
    if run.name == "release" or (run.name == "push" and run.ref.startswith("refs/tags/")):
        tag = (
            str(run.payload["release"]["tag_name"]) if run.name == "release" else run.ref[len("refs/tags/") :]
        )
        return Wanted(
            images=tuple(images),
            version=tag,
            publish=True,
            trusted=True,
            reason=f"version {tag} of all images",
        )
    if run.name == "push" and run.ref.startswith("refs/heads/"):
        branch = run.ref[len("refs/heads/") :]
        before = str(run.payload.get("before") or "0" * 40)
        stem = _UNFIT.sub("-", branch)[:60].strip(".-") or "branch"
        return Wanted(
            images=tuple(affected(before, True)),
            version=f"{stem}-{run.committed:%Y%m%d}-{run.sha[:_SHORT]}",
            publish=True,
            trusted=True,
            reason=f"a push to {branch}",
        )
    raise ConfigError(
        f"nothing is known to do for the event {run.name!r} on {run.ref!r}",
        hint="it is made for pull_request, push, release and workflow_dispatch",
    )


def _pull_request(run: Run, affected: Affected) -> Wanted:
    pull = run.payload["pull_request"]
    head, base = pull["head"], pull["base"]
    # A fork that was deleted has no repository any more.
    own = head.get("repo") is not None and head["repo"]["full_name"] == base["repo"]["full_name"]
    return Wanted(
        images=tuple(affected(str(base["sha"]), False)),
        version=f"pr-{pull['number']}-{str(head['sha'])[:_SHORT]}",
        publish=False,
        trusted=own,
        reason=f"pull request {pull['number']}" + ("" if own else " from a fork"),
    )


def _manual(run: Run, images: Sequence[str]) -> Wanted:
    given = run.payload.get("inputs") or {}
    image, tag = str(given.get("image", "")), str(given.get("tag", ""))
    if image not in images:
        raise ConfigError(f"images.yaml has no image {image!r}", hint=f"it has: {', '.join(images)}")
    if not tag:
        raise ConfigError("no tag is given", hint="a manual run publishes one image under one tag")
    return Wanted(images=(image,), version=tag, publish=True, trusted=True, reason="started by hand")
