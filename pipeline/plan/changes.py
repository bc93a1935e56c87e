"""What would run, and why. Pure: `observe` gathers the facts first, the plan follows from them.

The same reasoning serves ``sqshpipe plan``, ``plan --changed-since`` and ``refresh``: for each image and
stage, run or skip, because of which changed input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.config.names import Version
from pipeline.config.types import ImageSpec
from pipeline.image.inputs import BuildInputs
from pipeline.oci.digest import Digest
from pipeline.plan.current import ReleaseFacts, image_changes, option_changes
from pipeline.text import short

StageName = Literal["pin", "build", "push", "mirror", "scan", "convert", "verify", "publish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that is known of one image before the plan.

    ``base`` is the platform's manifest that a build would use; None when it is not locked and the registry
    did not answer (then ``base_problem`` says why). ``moved_to`` is what the tag stands for now, if that is
    something else. ``newest`` is the last release, ``taken`` the one that has the wanted version already.
    ``pushed`` is what the registry has under the build key (for a mirrored image: whether it has the base);
    ``registry_problem`` says why that is not known. ``target`` is where the release would appear;
    ``base_size`` the base's compressed bytes, if known; ``scan_policy`` is what `inputs.scan_policy` says
    now, ``layers`` where a conversion would take layers from.
    """

    spec: ImageSpec
    version: Version | None = None
    base: Digest | None = None
    base_problem: str = ""
    locked: bool = False
    moved_to: Digest | None = None
    inputs: BuildInputs | None = None
    newest: ReleaseFacts | None = None
    taken: ReleaseFacts | None = None
    pushed: Digest | None = None
    registry_problem: str = ""
    target: Path | None = None
    base_size: int | None = None
    scan_policy: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage of one image: whether it would run, and why or why not."""

    stage: StageName
    run: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """One image. ``problem`` says why the run would fail; ``writes`` is a guess in bytes, None if unknown.

    ``unknown`` says what could not be found out, because a registry did not answer.
    """

    image: str
    version: Version | None
    steps: tuple[Step, ...]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""
    unknown: str = ""
    target: Path | None = None
    writes: int | None = 0

    @property
    def has_changes(self) -> bool | None:
        """Whether something would run; None when that is not known."""
        if any(step.run for step in self.steps) or self.problem:
            return True
        return None if self.unknown else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would run for all images that were asked for."""

    images: tuple[ImagePlan, ...] = field(default_factory=tuple)

    @property
    def has_changes(self) -> bool | None:
        """Whether something would run; None when no image is known to change and one is not known."""
        found = [image.has_changes for image in self.images]
        return True if any(found) else None if None in found else False

    @property
    def unknown(self) -> str:
        """The first thing that could not be found out."""
        return next((image.unknown for image in self.images if image.unknown), "")

    def as_json(self) -> dict[str, Any]:
        """For machines; the keys are a promise."""
        return {
            "schema": 1,
            "changes": self.has_changes,
            "images": [_as_json(image) for image in self.images],
        }


def plan(observations: tuple[Observation, ...]) -> Plan:
    """What would run for each observed image."""
    return Plan(images=tuple(_plan_image(seen) for seen in observations))


def policy_changes(release: ReleaseFacts, seen: Observation) -> tuple[str, ...]:
    """Differences of the scan policy from the one that ``release`` passed; empty when no record has it."""
    if not release.scan_policy:
        return ()
    differences = []
    for name, after in seen.scan_policy.items():
        before = release.scan_policy.get(name)
        if before != after:
            differences.append(
                f"{name} changed" if name in ("waivers", "vex") else f"scan policy {name} {before} -> {after}"
            )
    return tuple(differences)


def _plan_image(seen: Observation) -> ImagePlan:
    pin = _pin(seen)
    notes = _notes(seen)
    if seen.base is None:
        return ImagePlan(
            image=seen.spec.name, version=seen.version, steps=(pin,), notes=notes, unknown=seen.base_problem
        )
    reference = seen.taken or seen.newest
    other_image = image_changes(reference, seen.spec, seen.base, seen.inputs)
    convert_changes = option_changes(reference, seen.spec.convert) if reference else ()
    changes = (*other_image, *convert_changes)
    policy = policy_changes(reference, seen) if reference else ()
    made = _image_steps(seen, reference, other_image)
    rest = _release_steps(seen, reference, changes, image_changed=bool(other_image), policy=policy)
    if reference and policy and not any(step.run for step in rest):
        again = f"sqshpipe store rescan {seen.spec.name} judges it again"
        notes = (*notes, f"{'; '.join(policy)} since {reference.version} was published: {again}")
    if any(step.run and step.stage == "convert" for step in rest):
        notes = (*notes, *seen.layers)
    problem = ""
    if seen.taken is not None and changes:
        problem = f"version {seen.version} is published with other content; choose another version"
    runs_convert = any(step.run and step.stage == "convert" for step in rest)
    size = reference.size if reference else seen.base_size
    return ImagePlan(
        image=seen.spec.name,
        version=seen.version,
        steps=(pin, *made, *rest),
        changes=changes,
        notes=notes,
        problem=problem,
        unknown=seen.registry_problem,
        target=seen.target if any(step.run for step in rest) else None,
        writes=size if runs_convert else 0,
    )


def _pin(seen: Observation) -> Step:
    if seen.base is None:
        return Step(stage="pin", run=False, reason=seen.base_problem or "the base is not known")
    how = "locked at" if seen.locked else "not locked, the tag stands for"
    return Step(stage="pin", run=False, reason=f"{how} {short(seen.base)}")


def _notes(seen: Observation) -> tuple[str, ...]:
    notes = []
    if seen.moved_to is not None and seen.base is not None:
        notes.append(
            f"{seen.spec.base} moved from {short(seen.base)} to {short(seen.moved_to)} since it was "
            "locked; sqshpipe lock takes the new one"
        )
    if seen.base is not None and seen.base_problem:
        notes.append(f"{seen.base_problem}; the locked digest is used")
    return tuple(notes)


def _image_steps(
    seen: Observation, reference: ReleaseFacts | None, changes: tuple[str, ...]
) -> tuple[Step, ...]:
    stages: tuple[StageName, ...] = ("mirror",) if seen.spec.mirrored else ("build", "push")
    if not changes and reference is not None:
        reason = f"nothing changed since {reference.version}"
        return tuple(Step(stage=stage, run=False, reason=reason) for stage in stages)
    if seen.pushed is not None:
        reason = f"already in the registry as {short(seen.pushed)}"
        return tuple(Step(stage=stage, run=False, reason=reason) for stage in stages)
    reason = "; ".join(changes)
    if seen.registry_problem:
        reason += ", unless the registry has it"
    first = Step(stage=stages[0], run=True, reason=reason)
    return (first, *(Step(stage=stage, run=True, reason="a new image") for stage in stages[1:]))


def _release_steps(
    seen: Observation,
    reference: ReleaseFacts | None,
    changes: tuple[str, ...],
    *,
    image_changed: bool,
    policy: tuple[str, ...],
) -> tuple[Step, ...]:
    if reference is not None and not changes:
        missing = seen.version is not None and seen.taken is None
        why = f"{seen.version} is not published" if missing else f"{reference.version} is published"
        stages: tuple[StageName, ...] = ("scan", "convert", "verify", "publish")
        steps = [Step(stage=stage, run=missing, reason=why) for stage in stages]
        if missing:
            steps[0] = _scan_step(seen, (why, *policy))
        if missing and reference.state == "published":
            same = f"the file of {reference.version} is the same"
            steps[1:3] = [Step(stage=step.stage, run=False, reason=same) for step in steps[1:3]]
        return tuple(steps)
    why = "a new image" if image_changed else "; ".join(changes)
    named = seen.version or "the version that is given"
    return (
        _scan_step(seen, (why, *policy)),
        Step(stage="convert", run=True, reason=why),
        Step(stage="verify", run=True, reason="a new file"),
        Step(stage="publish", run=True, reason=f"as {named}"),
    )


def _scan_step(seen: Observation, reasons: tuple[str, ...]) -> Step:
    if seen.spec.scan.scanner == "none":
        return Step(stage="scan", run=False, reason="scanner: none, nothing is looked at")
    return Step(stage="scan", run=True, reason="; ".join(reasons))


def _as_json(image: ImagePlan) -> dict[str, Any]:
    return {
        "image": image.image,
        "version": image.version,
        "changes": image.has_changes,
        "because": list(image.changes),
        "notes": list(image.notes),
        "problem": image.problem or None,
        "unknown": image.unknown or None,
        "publishes": str(image.target) if image.target else None,
        "writes": image.writes,
        "steps": [{"stage": step.stage, "run": step.run, "reason": step.reason} for step in image.steps],
    }
