"""Required signatures: where a policy names a key, a release without its signature does not resolve.

Two places hold such a policy. `store: {require_signature: KEY}` in images.yaml guards those who publish
against mistakes. `/etc/sqshpipe/signatures.json`, which `node install` writes, holds on its machine for every
store and every command, the importer included; no option, variable or file of a store changes it:

    {"schema": 1, "keys": {KEY_ID: PEM}, "marks": FOLDER, "mark_uids": [0], "state": FOLDER}

Whoever verifies a signature leaves a mark in `marks`, if allowed to write there. The importer, which cannot
verify signatures itself, demands this mark, and that one of `mark_uids` owns it. `state` is its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.store import sealed
from pipeline.store.keys import pem, public_keys
from pipeline.store.layout import Layout
from pipeline.store.reading import load, read_record
from pipeline.store.record import Record
from pipeline.system import untrusted
from pipeline.system.log import log

if TYPE_CHECKING:
    from securesystemslib.signer import Key

NODE_POLICY = Path("/etc/sqshpipe/signatures.json")
STATE = Path("/var/lib/sqshpipe")
SCHEMA = 1
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Required:
    """Keys of which one must have signed each release; `source` is the file that requires it.

    The rest is of a node: the folder for marks, whose marks count, the importer's folder.
    """

    keys: tuple[Key, ...]
    source: Path
    marks: Path | None = None
    mark_uids: tuple[int, ...] = (0,)
    state: Path = STATE

    def check(self, layout: Layout, record: Record) -> None:
        """Leave a mark for a signed release. Raises VerificationError when none of the keys signed it."""
        from pipeline.store import signatures

        found = signatures.signature_of(layout, record, self.keys)
        if found is None:
            name = f"{record.image}:{record.version}"
            raise VerificationError(
                f"{name} is not signed by the key that {self.source} requires",
                hint=f"the owner of that key signs it: sqshpipe attest sign {name} --key PRIVATE.pem",
            )
        if self.marks is not None:
            _leave_mark(self.marks, mark_name(found[1].keyid, record))

    def as_json(self) -> str:
        """The text of a node's policy."""
        values = {
            "schema": SCHEMA,
            "keys": {key.keyid: pem(key) for key in self.keys},
            "marks": str(self.marks),
            "mark_uids": list(self.mark_uids),
            "state": str(self.state),
        }
        return json.dumps(values, indent=2) + "\n"


def of_node() -> Required | None:
    """The policy of this machine; None when it has none.

    Raises ConfigError when the file is there and cannot be used: then nothing resolves.
    """
    try:
        raw = untrusted.read_regular(NODE_POLICY, limit=_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(error.strerror) from error
    try:
        data: Any = sealed.parse(raw, NODE_POLICY)
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r}")
        keys = tuple(_key_of(name, text) for name, text in data["keys"].items())
        marks, state, uids = Path(data["marks"]), Path(data["state"]), tuple(data["mark_uids"])
        if not keys or not marks.is_absolute() or not state.is_absolute():
            raise ValueError("it names no key, or no folder for marks")
        if not all(type(uid) is int for uid in uids):
            raise ValueError("mark_uids is not a list of numbers")
    except (sealed.UnreadableError, ConfigError) as error:
        raise _unusable(error.headline) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(error) from error
    return Required(keys=keys, source=NODE_POLICY, marks=marks, mark_uids=uids, state=state)


def _key_of(name: str, text: str) -> Key:
    (key,) = public_keys(text.encode(), str(NODE_POLICY))
    if key.keyid != name:
        raise ValueError(f"the key {name!r} has the id {key.keyid!r}")
    return key


def all_of(required: Required | None) -> list[Required]:
    """What is required of each release: by the store's user, if given, and by this machine."""
    return [one for one in (required, of_node()) if one is not None]


def demand(layout: Layout, record: Record, required: Required | None) -> None:
    """Check a release against every policy. Raises VerificationError, ConfigError."""
    for one in all_of(required):
        one.check(layout, record)


def is_signed(layout: Layout, record: Record, required: Required | None) -> bool:
    """Whether `demand` is content."""
    try:
        demand(layout, record, required)
    except (VerificationError, PublishError):
        return False
    return True


def demand_of(layout: Layout, image: str, version: str, platform: str, required: Required | None) -> Record:
    """As `demand`, for a version by its name; gives the record that was signed."""
    record = read_record(layout, image, version, platform)
    if record is None:
        raise VerificationError(f"{image}:{version} has no record, so nothing of it is signed")
    demand(layout, record, required)
    return record


def signed_version(layout: Layout, image: str, wanted: str, required: Required | None) -> str:
    """The version that a version or channel means; where a policy holds, each platform of it is signed.

    Raises VerificationError when one is not.
    """
    if not all_of(required):
        return wanted
    state = load(layout, image).state
    version = state.current(wanted) or wanted
    for platform in state.releases[version].platforms if version in state.releases else ():
        demand_of(layout, image, version, platform, required)
    return version


def is_signed_version(layout: Layout, image: str, version: str, required: Required | None) -> bool:
    """Whether `signed_version` is content with a version."""
    try:
        signed_version(layout, image, version, required)
    except (VerificationError, PublishError):
        return False
    return True


def may_be_named(layout: Layout, record: Record, required: Required | None) -> bool:
    """Whether channels may name what is about to be published: it is signed, or needs no signature."""
    if not all_of(required):
        return True
    there = read_record(layout, record.image, record.version, record.platform)
    if there is not None and is_signed(layout, there, required):
        return True
    name = f"{record.image}:{record.version}"
    log.warning(
        f"no channel names {name} before it is signed: sqshpipe attest sign {name} --key PRIVATE.pem, "
        f"then sqshpipe promote {name} CHANNEL"
    )
    return False


def mark_name(key_id: str, record: Record) -> str:
    """Name of the mark for a record that this key signed, 64 hex digits; the importer makes the same."""
    parts = ("sqshpipe signed 1", key_id, record.image, record.version, record.platform, record.sha256)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _leave_mark(folder: Path, name: str) -> None:
    """A file that holds its own name. Users who may not write there leave none."""
    with contextlib.suppress(OSError), untrusted.folder_to_write(folder) as opened:
        if not _is_marked(opened, name):
            untrusted.replace_in(opened, name, name.encode())


def _is_marked(folder: int, name: str) -> bool:
    """Whether root or this user has left the mark: those of others may not count, and are replaced."""
    try:
        mark = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if mark.st_uid not in (0, os.geteuid()) or mark.st_mode & 0o022:
            return False
        return untrusted.read_regular(name, limit=len(name), dir_fd=folder) == name.encode()
    except OSError:
        return False


def _unusable(why: object) -> ConfigError:
    return ConfigError(
        f"{NODE_POLICY} says which signatures releases need, and it cannot be used: {why}",
        hint="write it anew as root: sqshpipe node install --require-signature KEY …",
    )
