"""Start-up profiles beside a release: startup-1.json, startup-2.json, … Each is made once; the newest counts.

Nodes read these ranges of the .sqsh before the first rank asks for them. A profile is advice: one that is
damaged or belongs to another file is ignored with a warning.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.errors import FormatError, PublishError
from pipeline.squashfs import startup
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.startup import Profile
from pipeline.store import attachments, sealed
from pipeline.store.layout import Layout
from pipeline.store.record import Record, Release
from pipeline.system.log import log

LIMIT = 8 << 20
"""Bytes of one profile; a start of 3,600 reads takes about 60 KB."""
_NAME = re.compile(r"startup-([1-9][0-9]{0,8})\.json")
_MOST = 1000  # profiles of one release


def to_bytes(profile: Profile) -> bytes:
    """The file of a profile, with its checksum."""
    return sealed.seal(json.dumps(profile.as_table(), separators=(", ", ": ")))


def read(path: Path) -> Profile:
    """A profile that `node profile -o` wrote.

    Raises UnreadableError when the file is damaged, FileNotFoundError when it is missing.
    """
    return _parse(sealed.read_bytes(path, limit=LIMIT), path)


def newest(layout: Layout, record: Record) -> Profile | None:
    """The newest profile of a release; None when it has none.

    Also None, with a warning, when the newest one is damaged or is the profile of another file.
    """
    number = _last(layout, record)
    if not number:
        return None
    name = f"startup-{number}.json"
    path = layout.attachments(record.image, record.version, record.platform) / name
    try:
        raw = attachments.read(layout, record, name, limit=LIMIT)
        profile = _parse(raw or b"", path)
        if (profile.sha256, profile.size) != (record.sha256, record.size):
            raise sealed.damaged(path, "it is the profile of another file")
    except PublishError as error:
        log.warning("a start-up profile is ignored", why=error.headline)
        return None
    return profile


def attach(layout: Layout, release: Release, profile: Profile) -> str:
    """Attach a profile to a release and return the name of its file.

    The ranges of a profile of another version are first computed for this file from its paths. A profile that
    is attached already gets no second file. Raises FormatError when the release's file is damaged,
    PublishError when the store refuses or has too many profiles of this release.
    """
    if (profile.sha256, profile.size) != (release.sha256, release.size):
        with SquashfsImage.open(release.path) as image:
            profile = startup.resolve(profile, image, release.sha256)
    content = to_bytes(profile)
    if len(content) > LIMIT:
        raise PublishError(
            f"the profile has {len(content)} bytes; at most {LIMIT} are read",
            hint="record a command that starts the program and ends",
        )
    last = _last(layout, release)
    for number in range(max(last, 1), _MOST):
        name = f"startup-{number}.json"
        attachments.add(layout, release, name, content)
        if attachments.read(layout, release, name) == content:
            return name
    raise PublishError(f"{release.name} has {last} start-up profiles: no more are added")


def _last(layout: Layout, record: Record) -> int:
    """The highest number of a profile; 0 when it is missing."""
    found = (_NAME.fullmatch(name) for name in attachments.names(layout, record))
    return max((int(each[1]) for each in found if each), default=0)


def _parse(raw: bytes, path: Path) -> Profile:
    table = sealed.check_schema(sealed.parse(raw, path), path, newest=startup.SCHEMA)
    if sealed.KEY not in table:
        raise sealed.damaged(path, "it has no checksum")
    try:
        return Profile.from_table(table, "it")
    except FormatError as error:
        raise sealed.damaged(path, error.message) from error
