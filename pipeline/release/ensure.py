"""What is wanted of an image, and whether it is released already: all that a run with nothing to do loads.

Engine, scanners and converters are imported when there is something to make; most runs of a pipeline find
everything done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pipeline import inputs
from pipeline.bases.clients import Clients
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import PublishError
from pipeline.inputs import BuildInputs
from pipeline.lock import Lock
from pipeline.oci.digest import Digest
from pipeline.plan import changes as plan
from pipeline.plan.observe import released
from pipeline.progress import Story
from pipeline.stages.pin import BaseImage, pin
from pipeline.store.names import check_version
from pipeline.store.record import Release
from pipeline.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """An image with its base pinned: what decides whether anything has to run.

    ``build_inputs`` is None for an entry without a Dockerfile, which is mirrored as it is.
    """

    base: BaseImage
    build_inputs: BuildInputs | None


def ensure(
    spec: ImageSpec,
    version: str,
    *,
    config: Config,
    lock: Lock,
    clients: Clients,
    story: Story,
    revision: str | None = None,
) -> Release:
    """The release of ``spec`` as ``version``: as published, else made by the stages of `pipeline.release.path`.

    Raises each stage's own errors; PublishError when the version is published with other content.
    """
    check_version(version)
    store = Store(config.store.root, group=config.store.group, stripe=config.store.stripe)
    pinned = pin_base(spec, lock=lock, clients=clients, story=story)
    done = published(spec, version, pinned, store)
    if done is not None:
        story.skip("publish", f"{done.name} is published and nothing changed")
        done = store.publish(done, done.path)
        if store.is_attested(done):
            return done
    from pipeline.release.path import attested, release

    if done is None:
        return release(
            spec, version, pinned, store, config=config, clients=clients, story=story, revision=revision
        )
    attested(done, store, clients=clients, story=story)  # what a run that died left is finished by the next
    return done


def pin_base(spec: ImageSpec, *, lock: Lock, clients: Clients, story: Story) -> Pinned:
    """Pin the base and fingerprint what is built on it."""
    with story.stage("pin"):
        base = pin(spec.base, spec.platform, lock, clients)
        story.result(_pin_sentence(base))
        return Pinned(base=base, build_inputs=None if spec.mirrored else inputs.gather(spec, base.digest))


def published(spec: ImageSpec, version: str, pinned: Pinned, store: Store) -> Release | None:
    """The release that is wanted, if it is there. Raises PublishError when the version has other content."""
    there = store.release(spec.name, version, str(spec.platform))
    if there is None:
        return None
    facts = released(there)
    built = pinned.build_inputs
    if built is not None:  # age calls for a next version, it makes no other content of this one
        built = replace(built, period=facts.inputs.get("period"))
    wanted = plan.Observation(spec=spec, base=pinned.base.digest, inputs=built)
    changes = plan.option_changes(facts, spec.convert)
    if not plan.is_current(facts, wanted):
        changes = (*plan.image_changes(facts, wanted), *changes)
    if changes:
        told = "; ".join(changes)
        free = _next_version(spec, version, store)
        raise PublishError(
            f"{there.name} was published at {there.created} with other content: {told}",
            hint=f"a published version never changes: choose the next one{free}",
        )
    if there.state == "yanked":
        raise PublishError(
            f"{there.name} was yanked", hint=f"sqshpipe yank --undo {there.name}, or choose another version"
        )
    return there if there.state == "published" else None


def _next_version(spec: ImageSpec, version: str, store: Store) -> str:
    """``, as in --tag v1.3`` where the last number of ``version`` can be counted on; else nothing."""
    numbered = re.fullmatch(r"(.*?)(\d{1,9})", version)
    if numbered is None:
        return ""
    number = int(numbered[2]) + 1
    while store.release(spec.name, f"{numbered[1]}{number}", str(spec.platform)) is not None:
        number += 1
    return f", as in --tag {numbered[1]}{number}"


def _pin_sentence(base: BaseImage) -> str:
    how = "locked" if base.locked else "not locked, as the tag stands now"
    moved = f"; the tag has moved to {_short(base.moved_to)}, see sqshpipe lock" if base.moved_to else ""
    return f"{base.reference} is {_short(base.digest)}, {how}{moved}"


def _short(digest: Digest) -> str:
    return str(digest)[: len("sha256:") + 12]
