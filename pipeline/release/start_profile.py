"""The start-up profile of a new release: which ranges of its file a start reads.

They come from the tests of the release. Without tests they come from the profile of an earlier version. A
profile only makes starts faster, so no failure here stops a release.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SqshpipeError
from pipeline.squashfs import startup
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.startup import Profile
from pipeline.store import profiles
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.system import self_command
from pipeline.system.log import log

_BEFORE = 3  # versions that are asked for a profile


def can_record() -> bool:
    """Whether this machine has what `node profile` needs."""
    return shutil.which("strace") is not None and shutil.which("squashfuse") is not None


def recording(path: Path, command: Sequence[str], profile: Path, sha256: str) -> list[str]:
    """The argv that runs a command in a .sqsh and writes the profile of its start."""
    return self_command.verb(
        "node", "profile", str(path), "--digest", sha256, "-o", str(profile), "--", *command
    )


def attach(made: Release, store: Store, recorded: Path) -> str:
    """Attach a profile to a release. Returns a sentence about it, empty when there is nothing to attach.

    `recorded` is the folder with the profiles that the tests have recorded.
    """
    try:
        return _from_tests(made, store, recorded) or _from_version_before(made, store)
    except (SqshpipeError, OSError) as error:
        log.warning("the release has no start-up profile", why=str(error))
        return ""


def _from_tests(made: Release, store: Store, recorded: Path) -> str:
    found = [profiles.read(path) for path in sorted(recorded.glob("*.json"))]
    reads = [each for profile in found for each in profile.ranges]
    if not reads:
        return ""
    with SquashfsImage.open(made.path) as image:
        whole = startup.describe(image, made.sha256, reads)
    return _attached(made, store, whole, "of its tests")


def _from_version_before(made: Release, store: Store) -> str:
    if profiles.newest(store.layout, made) is not None:
        return ""
    others = [
        each
        for each in store.releases(made.image)
        if each.version != made.version and each.platform == made.platform
    ]
    for other in others[:_BEFORE]:
        profile = profiles.newest(store.layout, other)
        if profile is not None:
            return _attached(made, store, profile, f"of {other.name}")
    return ""


def _attached(made: Release, store: Store, profile: Profile, whose: str) -> str:
    name = profiles.attach(store.layout, made, profile)
    return f"{name}: the start-up profile {whose}"
