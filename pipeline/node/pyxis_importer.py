#!/usr/bin/python3 -IS
"""pyxis-importer: give pyxis the published .sqsh that a user named.

    pyxis-importer get docker://IMAGE[:VERSION|:CHANNEL]
    pyxis-importer get docker://HOST/REPO[:TAG|@sha256:DIGEST], also HOST#REPO and USER@HOST#REPO
    pyxis-importer release

plugstack.conf:  optional spank_pyxis.so use_squashfuse=1 importer=PREFIX/bin/pyxis-importer

`get` prints one absolute path; all else goes to stderr, which pyxis shows when `get` fails. It runs as the
job's user on every node of a step at once, so it takes no lock, writes nothing but a lease (who uses the
file), marks of files that it has hashed and what it reads ahead, and works on a store that users can only
read. `release` drops the lease and ends reading ahead, any number of times. Settings: pyxis-importer.json
beside this file. Where /etc/sqshpipe/signatures.json requires signatures, `get` demands the mark of who has
verified one. This file stands alone: Python 3.8, standard library only.

Which version a name means is what the records and the events of the store say. index.json answers quicker; it
is believed only when its checksum is right and it is newer than every event.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import stat
import sys
import time

TYPE_CHECKING = False  # as type checkers know it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = 1
POLICY = "/etc/sqshpipe/signatures.json"
LATEST = "latest"
USUAL_PLATFORM = "linux/amd64"
MACHINES = {"x86_64": USUAL_PLATFORM, "aarch64": "linux/arm64"}
HUBS = ("docker.io", "index.docker.io", "registry-1.docker.io")
NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHANNEL = frozenset(LETTERS + "0123456789_-")
HEX = frozenset("0123456789abcdef")
MAGIC = b"hsqs"
SUPERBLOCK = 96
LARGEST_TABLE = 64 << 20  # bytes of one JSON file
DEEPEST = 32  # objects and lists within one another
LONGEST_NUMBER = 19  # digits
BLOCK = 4 << 20
PROFILE = 8 << 20  # bytes of one start-up profile
RANGES = 1 << 16  # that it may have
READERS = 16
PIECE = 1 << 20  # bytes that one of them asks for
PREFETCH_SECONDS = 60.0  # then a start is over or will not be saved
PREFETCH_AGAIN = 600  # seconds until a file is read ahead again
SEAL = b'"crc32": "'  # the last key of an object; its value covers all bytes before it
STATES = {"hidden": "about to be pruned", "pruned": "pruned", "yanked": "withdrawn", "damaged": "damaged"}
HISTORY = 50  # versions that a channel remembers
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not make us wait
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Refused(Exception):
    """No file for this reference; the text is for the user."""

    exit_code = 1


class NoStore(Refused):
    """Nothing is known of any reference: the exit code is that of every verb that finds no store."""

    exit_code = 8


class NotPublished(Refused):
    """The store has nothing of this name: what the setting `missing` is about."""


class Damaged(Refused):
    """A file of the store that is not what the store writes."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} is damaged ({why}): ask the owner of the store to run `sqshpipe store rebuild`"
        )


class Settings:
    """What pyxis-importer.json may contain."""

    store = ""  # root of the releases
    leases = ""  # where leases are left; empty: STORE/leases
    registries: tuple[str, ...] | list[str] = ()  # HOST/PREFIX whose repositories are the images of the store
    missing = "refuse"  # or "import": run enroot import into a cache of this node
    enroot = "enroot"
    state = "/var/lib/sqshpipe"  # node-local: marks of checked files, imported images
    local = ""  # node-local folder of prewarmed copies, preferred when there
    trusted_uids: tuple[int, ...] | list[int] = (0,)  # whose copies and marks count, besides the user's own
    verify = False  # compare the whole file's sha256, once a node and digest
    mounts = "kernel"  # what a prolog makes for jobs that name a file in their comment; or "fuse": nothing
    kernel_mounts = 32  # files that may be mounted for jobs at once
    prefetch_mib = 1024  # at most so much of what a start needs is read ahead; 0: nothing
    cluster = ""
    cache_hours = 24  # how long an imported image is taken for fresh, and kept unused
    lease_hours = 720  # until when a lease counts whose job's end is not known

    def __init__(self, values: dict[str, object]) -> None:
        for key, value in values.items():
            if key != "schema":
                wanted = getattr(Settings, key, None)
                if type(value) is not (list if isinstance(wanted, tuple) else type(wanted)):
                    raise Refused(f"pyxis-importer.json: bad value of {key}")
                setattr(self, key, value)

    def owners(self) -> tuple[int, ...]:
        """Whose copies and marks this process believes."""
        return (*self.trusted_uids, os.getuid())


class Wanted:
    """What the user wrote, in parts: repository, image (its last part), version or channel, digest.

    Without a host it is an image of the store; two names without a host are a repository of Docker Hub.
    """

    def __init__(self, text: str) -> None:
        scheme, separator, rest = text.partition("://")
        self.text = rest = rest if separator else text
        rest, at, self.digest = rest.partition("@sha256:")
        host, sharp, path = rest.partition("#")
        if not sharp:
            host, slash, path = rest.partition("/")
            bare = host.rpartition("@")[2]
            if not slash or not ("." in bare or ":" in bare or bare == "localhost"):
                host, path = "", rest
        self.host = host.rpartition("@")[2]
        folder, slash, last = path.rpartition("/")
        self.image, colon, self.name = last.partition(":")
        if self.host in HUBS or (slash and not self.host):
            self.host, folder, slash = HUBS[0], folder or "library", "/"
        self.repository = folder + slash + self.image
        well = all(map(is_name, self.repository.split("/"))) and (not colon or is_name(self.name))
        well = (
            well
            and (not self.host or is_name(self.host.replace(":", "")))
            and (not at or is_digest(self.digest))
        )
        if not well or (separator and scheme != "docker"):
            raise Refused(
                f"{text[:300]} is not an image reference that can be looked up{what_to_write(text)}"
            )

    def is_repository(self, name: str) -> bool:
        """Whether `name` (host/repository, as records have it) is what the user means."""
        return name == f"{self.host}/{self.repository}"


class Found:
    """A file of the store, as index.json or a record describes it."""

    def __init__(self, image: str, version: str, entry: dict[str, object]) -> None:
        self.image, self.version = image, version
        self.sha256, self.file = str(entry.get("sha256")), str(entry.get("file"))
        self.size = entry.get("size")
        self.was_read = False  # whole, a moment ago, by us
        if not is_digest(self.sha256) or self.file != f"blobs/sha256/{self.sha256}.sqsh":
            raise Refused(f"the store's entry of {image}:{version} is damaged: inform the owner of the store")


def is_name(text: str) -> bool:
    return 0 < len(text) <= 128 and text[0] not in ".-" and NAME.issuperset(text)


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def is_channel(text: str) -> bool:
    return is_name(text) and len(text) <= 63 and text[0] in LETTERS and CHANNEL.issuperset(text)


def is_digest(text: str) -> bool:
    return len(text) == 64 and HEX.issuperset(text)


def tail_of(digest: object) -> str:
    return str(digest).rpartition(":")[2]


def table(value: object, *keys: str) -> dict[str, object]:
    """The JSON object at a path of keys; empty where it is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def escaped(text: str) -> str:
    """Text that others wrote, on one line and without anything that a terminal obeys."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def say(text: str) -> None:
    """One line to stderr, at once."""
    try:
        os.write(2, f"pyxis-importer: {escaped(text)}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody reads it


# -- Reading the store -------------------------------------------------------------------------------------


def read(path: str, flags: int = os.O_NOFOLLOW, limit: int = LARGEST_TABLE) -> bytes | None:
    """The bytes of a small regular file; None when it is missing."""
    for attempt in range(4):  # a file renamed over while it is opened is stale on NFS: open the new one
        try:
            descriptor = os.open(path, READ | flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                    raise Damaged(path, f"not a regular file of at most {limit >> 20} MiB")
                return read_all(descriptor, status.st_size)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):  # noqa: PERF203 - the loop is left at once
            break
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Damaged(path, "a symlink or a socket") from None
            if attempt == 3:
                raise Refused(f"cannot read {path}: {error.strerror}") from None
    return None


def read_all(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes, however many a read gives at once."""
    data = os.read(descriptor, size)
    while 0 < len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


def parse(path: str, raw: bytes, *, sealed: bool = False) -> dict[str, object]:
    """The JSON object that a file of the store holds. With `sealed` it must have a checksum.

    Raises Damaged for other bytes or a wrong checksum, Refused for a schema that this program does not know.
    """
    try:
        pairs = None if sealed else unique
        found = json.loads(
            raw.decode(), object_pairs_hook=pairs, parse_int=integer, parse_constant=not_a_number
        )
        if not isinstance(found, dict) or (not sealed and is_deeper(found, DEEPEST)):
            raise Damaged(path, "not a JSON object, or nested too deeply")
        if b"\\u" in raw:
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (ValueError, RecursionError):
        raise Damaged(path, "not JSON") from None
    schema = found.get("schema", 0)
    if type(schema) is not int or schema < 0:
        raise Damaged(path, "its schema is not a number")
    if schema > SCHEMA:
        raise Refused(f"{path} is newer than this importer: run `sqshpipe node install` on the nodes")
    if ("crc32" in found or sealed) and not is_sound(raw):
        raise Damaged(path, "its checksum is wrong" if "crc32" in found else "it has no checksum")
    return found


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object in which no key is there twice: one reader takes the first, another one the last."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def not_a_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def integer(digits: str) -> int:
    if len(digits.lstrip("-")) > LONGEST_NUMBER:
        raise ValueError("a number beyond 64 bits")
    return int(digits)


def is_deeper(value: object, levels: int) -> bool:
    """Whether objects and lists lie more than so many levels within one another."""
    if not isinstance(value, (dict, list)):
        return False
    below = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(each, levels - 1) for each in below)


def is_sound(raw: bytes) -> bool:
    """Whether the last key of the object is the checksum of all bytes before that key."""
    before, seal, after = raw.rpartition(SEAL)
    value, rest = after[:8], after[8:].split()
    return bool(seal) and rest in ([b'"}'], [b'"', b"}"]) and value == b"%08x" % binascii.crc32(before)


def list_folder(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Refused(f"cannot list {path}: {error.strerror}") from None


def platform() -> str:
    machine = os.uname().machine
    return MACHINES.get(machine, "linux/" + machine)


def stem(version: str, of: str = "") -> str:
    """The file name of a version: other platforms than the usual one have a suffix."""
    of = of or platform()
    return version if of == USUAL_PLATFORM else version + "." + of.replace("/", "-")


class Image:
    """What is true of one image: its index.json when that is whole and newest, else its events."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder, self.name = folder, name
        self.index = self.newest_index()
        if self.index:
            self.channels = {each: str(version) for each, version in table(self.index, "channels").items()}
        else:
            self.history = History(folder, name)
            self.channels = {each: names[-1] for each, names in self.history.channels.items() if names}

    def newest_index(self) -> dict[str, object]:
        path = self.folder + "/index.json"
        try:
            raw = read(path)
            index = parse(path, raw, sealed=True) if raw is not None else {}
        except Damaged:
            return {}
        last = index.get("events")
        if type(last) is not int or last < 0 or index.get("image") != self.name:
            return {}
        if last and index.get("newest_event") != checksum_of(event_path(self.folder, last)):
            return {}
        return {} if os.path.lexists(event_path(self.folder, last + 1)) else index

    def record(self, version: str) -> dict[str, object]:
        """The record of a version for this platform; empty when it is missing."""
        path = f"{self.folder}/{stem(version)}.json"
        raw = read(path)
        found = parse(path, raw) if raw is not None else {}
        if "channel" in found and "sha256" not in found:
            return {}  # it only holds the name for a channel
        there = (found.get("image"), found.get("version"), found.get("platform", USUAL_PLATFORM))
        if found and there != (self.name, version, platform()):
            raise Damaged(path, "the record of another release")
        if raw is not None and not is_record(found):
            raise Damaged(path, "not a record")
        return found

    def entry(self, version: str) -> dict[str, object]:
        """Where the bytes of a version lie; empty when it has none for this platform."""
        return table(self.index, "releases", version, "platforms", platform()) or self.record(version)

    def state(self, version: str) -> str:
        if not self.index:
            return self.history.state(version)
        release = table(self.index, "releases", version)
        state = str(release.get("state", "published"))
        return "damaged" if state != "pruned" and platform() in table(release, "damaged") else state

    def versions_of(self, digest: str) -> list[tuple[bool, str, str]]:
        """(published, created, version) of what was made from an image of this digest, or has it itself, on
        this platform. Records that the index does not contain yet are read.
        """
        found = []
        known = {"index.json"}
        for version, release in table(self.index, "releases").items():
            known.update(f"{stem(version, each)}.json" for each in table(release, "platforms"))
            known.update(f"{stem(version, each)}.json" for each in table(release, "damaged"))
            entry = table(release, "platforms", platform())
            if digest in (tail_of(entry.get("source")), entry.get("sha256")):
                found.append((version, table(release).get("created")))
        for name in list_folder(self.folder):
            if name in known or not name.endswith(".json") or not is_name(name):
                continue
            path = f"{self.folder}/{name}"
            raw = read(path)
            try:
                record = parse(path, raw) if raw is not None else {}
            except Damaged:
                continue  # it is of this digest only if its version is asked for, which says what is wrong
            mine = record.get("platform", USUAL_PLATFORM) == platform()
            if mine and digest in (tail_of(table(record, "source").get("digest")), record.get("sha256")):
                found.append((str(record.get("version")), record.get("created")))
        return [(self.state(version) == "published", str(created), version) for version, created in found]

    def known(self, wanted: Wanted) -> str:
        """What of this image could be meant instead: what is spelled alike, then the newest."""
        from difflib import get_close_matches

        releases = table(self.index, "releases")
        names = [each for each in releases if table(releases, each).get("state") == "published"]
        names.sort(key=lambda each: str(table(releases, each).get("created")), reverse=True)
        near = get_close_matches(wanted.name, names, 4, 0.4) + names[:4] + list(self.channels)
        hint = ", ".join(f"{wanted.image}:{each}" for each in dict.fromkeys(near))
        return "; there is: " + hint if hint else ""


def event_path(folder: str, number: int) -> str:
    return f"{folder}/.meta/events/{number:08d}.json"


def checksum_of(path: str) -> str:
    """CRC-32 of a file of the store; empty when it cannot be read."""
    try:
        raw = read(path)
    except Refused:
        return ""
    return "" if raw is None else f"{binascii.crc32(raw):08x}"


def is_record(found: dict[str, object]) -> bool:
    """Whether the fields have the types of a record, by the same rule as in the store."""
    size, checks, source = found.get("size"), found.get("checks") or [], table(found, "source")
    objects = [found.get(key) for key in ("source", "base", "keys", "converter", "scan", "provenance")]
    return (
        type(size) is int
        and size >= 0
        and isinstance(found.get("created", ""), str)
        and isinstance(source.get("digest", ""), str)
        and all(each is None or isinstance(each, dict) for each in objects)
        and isinstance(checks, list)
        and all(isinstance(each, str) for each in checks)
    )


class History:
    """The events of an image, folded as the store folds them: what channels name, what is not published."""

    def __init__(self, folder: str, name: str) -> None:
        self.channels: dict[str, list[str]] = {}
        self.marks: dict[str, set[str]] = {}
        numbers = [each[:-5] for each in list_folder(folder + "/.meta/events") if each.endswith(".json")]
        last = max((int(each) for each in numbers if 8 <= len(each) <= 12 and is_number(each)), default=0)
        number = 1
        while (raw := read(path := event_path(folder, number))) is not None:
            event = parse(path, raw)
            if event.get("image", name) != name or event.get("number", number) != number:
                raise Damaged(path, "another event")
            text = [event.get(key) or "" for key in EVENT_TEXTS]
            if not all(isinstance(each, str) for each in text):
                raise Damaged(path, "not an event")
            kind, version, channel, of = map(str, text[:4])
            names_channel = is_channel(channel) or kind not in ("promote", "rollback")
            if not is_name(version) or not names_channel or not self.apply(kind, version, channel, of):
                raise Damaged(path, "an event that this importer does not know")
            number += 1
        if number <= last:
            raise Damaged(path, "missing, although later events are there")

    def apply(self, kind: str, version: str, channel: str, of: str) -> bool:
        """Fold one event in; False for one that is not known."""
        names = self.channels.setdefault(channel, []) if channel else []
        marks = self.marks.setdefault(version, set())
        if kind == "promote":
            if names[-1:] != [version]:
                names.append(version)
                del names[:-HISTORY]
        elif kind == "rollback":
            while names and names[-1] != version:
                names.pop()
            if not names:
                names.append(version)
        elif kind in ("yank", "hide", "delete"):
            marks.add({"yank": "yanked", "hide": "hidden", "delete": "pruned"}[kind])
            if kind == "yank":
                self.forsake(version)
        elif kind in ("unyank", "unhide"):
            marks.discard({"unyank": "yanked", "unhide": "hidden"}[kind])
        elif kind == "restore":
            marks.difference_update(("hidden", "pruned"))
        elif kind == "damaged":
            marks.add(stem(version, of) + " damaged")
        elif kind == "repaired":
            marks.discard(stem(version, of) + " damaged")
        return kind in KINDS

    def forsake(self, version: str) -> None:
        """A yanked version leaves its channels; each names again what it named before and still resolves."""
        for names in self.channels.values():
            if names[-1:] == [version]:
                while names and self.marks.get(names[-1]):
                    names.pop()

    def state(self, version: str) -> str:
        marks = self.marks.get(version, set())
        damaged = "damaged" if stem(version) + " damaged" in marks else ""
        if "pruned" in marks or damaged:
            return "pruned" if "pruned" in marks else damaged
        return "hidden" if "hidden" in marks else "yanked" if "yanked" in marks else "published"


EVENT_TEXTS = ("event", "version", "channel", "platform", "from", "sha256", "reason", "by", "at")
KINDS = frozenset(
    ("promote", "rollback", "yank", "unyank", "keep", "unkeep", "hide", "unhide", "delete", "restore")
) | {"damaged", "repaired"}


def find(settings: Settings, wanted: Wanted) -> Found:
    """The file that a reference names."""
    image = Image(f"{settings.store}/{wanted.image}", wanted.image)
    name = wanted.name or LATEST
    if wanted.digest:
        version = max(image.versions_of(wanted.digest), default=(False, "", ""))[2]
    else:
        version = image.channels.get(name, name)
    if not is_name(version):
        raise not_published(settings.store, wanted, image)
    entry = image.entry(version)
    if entry.get("kind") == "data":
        raise is_data(wanted, version)
    from_elsewhere = wanted.host and not wanted.digest and not is_ours(settings, wanted)
    if not entry or (from_elsewhere and not made_from(image.record(version), wanted)):
        raise not_published(settings.store, wanted, image)
    state = image.state(version)
    if state != "published":
        raise Refused(f"{wanted.image}:{version} is {STATES.get(state, state)}{image.known(wanted)}")
    found = Found(wanted.image, version, entry)
    demand_mark(settings, found)
    return found


def demand_mark(settings: Settings, found: Found) -> None:
    """Where this node requires signatures, somebody trusted has verified one of this release: Refused if not.

    The mark names key, release and sha256. That the file has this sha256 is looked at afterwards.
    """
    raw = read(POLICY)
    if raw is None:
        return
    settings.verify = True
    try:
        policy = parse(POLICY, raw)
    except Damaged:
        policy = {}
    marks, uids, keys = policy.get("marks"), policy.get("mark_uids"), table(policy, "keys")
    if type(marks) is not str or type(uids) is not list or not keys:
        raise Refused(f"{POLICY} cannot be used: root runs `sqshpipe node install --require-signature` again")
    if not any(is_signed(marks, key, tuple(uids), found) for key in keys):
        name = f"{found.image}:{found.version}"
        raise Refused(
            f"{name} has no mark of a verified signature on {node_name()}: if it is signed, "
            f"root runs `sqshpipe resolve {name}` here or `sqshpipe node prewarm {name}`"
        )


def is_signed(marks: str, key: str, uids: tuple[int, ...], found: Found) -> bool:
    """Whether one of `uids` has verified that this key signed this release."""
    import hashlib

    parts = ("sqshpipe signed 1", key, found.image, found.version, platform(), found.sha256)
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    try:
        return owned_content(f"{marks}/{name}", uids) == name.encode()
    except OSError:
        return False


def what_to_write(text: str) -> str:
    """Advice for the ways of writing a reference that pyxis or another tool takes and this one does not."""
    rest = text.partition("://")[2] or text
    if "dockerd://" in text or "podman://" in text:
        return "; an image of this node's engine has to be published first: write IMAGE:VERSION"
    host, sharp, path = rest.partition("#")
    if sharp and path.startswith("/"):
        return f"; no slash after the #: {host[:200]}#{path.lstrip('/')[:200]}"
    return "; write IMAGE:VERSION, HOST/REPOSITORY:TAG or the path of a file, beginning with / or ./"


def is_ours(settings: Settings, wanted: Wanted) -> bool:
    """Whether the repository is one that the settings declare to be an image of the store."""
    names = [f"{each.rstrip('/')}/{wanted.image}" for each in settings.registries]
    return any(wanted.is_repository(name) for name in names)


def made_from(record: dict[str, object], wanted: Wanted) -> bool:
    """Whether a release came from the repository that the user wrote, directly or mirrored unchanged."""
    source, base = table(record, "source"), table(record, "base")
    if wanted.is_repository(str(source.get("repository"))):
        return True
    mirrored = base.get("digest") is not None and base.get("digest") == source.get("digest")
    name, _, tag = str(base.get("reference")).partition("@")[0].rpartition(":")
    return mirrored and wanted.is_repository(name) and tag == (wanted.name or LATEST)


def is_data(wanted: Wanted, version: str) -> Refused:
    name = f"{wanted.image}:{version}"
    return Refused(
        f"{name} is data, not an image: start an image, with {name} mounted in it (job script --data)"
    )


def not_published(root: str, wanted: Wanted, image: Image) -> Refused:
    from difflib import get_close_matches

    if not is_store(root):
        raise NoStore(
            f"there is no store at {root}: is its file system mounted on this node? "
            f"A new store is created once: sqshpipe store create {root}"
        )
    version = image.channels.get(wanted.name or LATEST, wanted.name)
    platforms = table(image.index, "releases", version, "platforms")
    if any(table(platforms, each).get("kind") == "data" for each in platforms):
        return is_data(wanted, version)
    if platforms and platform() not in platforms:
        there = ", ".join(sorted(platforms))
        return NotPublished(f"{wanted.text} is not published for {platform()}, only for {there}")
    if wanted.image.endswith((".sqsh", ".squashfs")):
        text = f"{wanted.text} is taken for an image's name: the path of a file begins with / or ./"
        return NotPublished(f"{text}; write ./{wanted.text}")
    if wanted.digest and wanted.name and image.entry(image.channels.get(wanted.name, wanted.name)):
        return NotPublished(f"{wanted.image}:{wanted.name} is published, but its digest is another one")
    hint = image.known(wanted)
    if not hint and not list_folder(image.folder):
        images = [each for each in list_folder(root) if is_name(each) and os.path.isdir(f"{root}/{each}")]
        images = [each for each in images if each not in ("blobs", "leases")]
        near = get_close_matches(wanted.image, images, 3, 0.5) or images[:8]
        hint = "; did you mean one of: " + ", ".join(near) if near else "; there is no image at all"
    return NotPublished(f"{wanted.text} is not published in {root}{hint}")


def is_store(root: str) -> bool:
    """Whether a store is there: its folder of bytes, its manifest or a record, as `store create` looks for.

    An empty mount point is not a store: what is missing there does not count as not published.
    """
    if os.path.exists(f"{root}/blobs/sha256") or os.path.exists(f"{root}/manifest.json"):
        return True
    return any(is_name(each) and has_records(f"{root}/{each}", each) for each in list_folder(root))


def has_records(folder: str, image: str) -> bool:
    if os.path.isdir(f"{folder}/.meta/events"):
        return True
    for name in list_folder(folder):
        try:
            raw = read(f"{folder}/{name}") if name.endswith(".json") else None
            record = parse(name, raw) if raw is not None else {}
        except Refused:
            continue
        if record.get("image") == image and is_digest(str(record.get("sha256"))):
            return True
    return False


# -- Leases ------------------------------------------------------------------------------------------------


def node_name() -> str:
    """This node as Slurm calls it, else the host: one host may carry several nodes.

    SLURMD_NODENAME is gone when pyxis releases; the topology address is there both times, as NODE or
    SWITCH.….NODE.
    """
    above = os.environ.get("SLURM_TOPOLOGY_ADDR_PATTERN", "").count(".")
    return clean(os.environ.get("SLURM_TOPOLOGY_ADDR", "").split(".", above)[-1] or os.uname().nodename)


def clean(text: str) -> str:
    return "".join(filter(NAME.__contains__, text))


def lease_stem() -> str:
    """How the name of this step's lease on this node begins; empty outside a job."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not (is_number(job)):
        return ""
    return f"job-{job}.{clean(os.environ.get('SLURM_STEP_ID', '')) or 0}-{node_name()}-{os.getuid()}"


def lease_folder(settings: Settings) -> int:
    return os.open(settings.leases or f"{settings.store}/leases", FOLDER)


def lease_text(settings: Settings, found: Found) -> bytes:
    now = time.time()
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    sane = is_number(end) and len(end) <= 10  # seconds until the year 2286
    until = int(end) + 3600 if sane else now + 3600 * settings.lease_hours
    stamp = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each)) for each in (now, until)]
    values = {
        "schema": 1,
        "sha256": found.sha256,
        "image": found.image,
        "version": found.version,
        "host": node_name(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "step": clean(os.environ.get("SLURM_STEP_ID", "")),
        "uid": os.getuid(),
        "cluster": clean(os.environ.get("SLURM_CLUSTER_NAME", "") or settings.cluster),
        "created": stamp[0],
        "expires": stamp[1],
    }
    return json.dumps(values).encode() + b"\n"


def leave_lease(settings: Settings, found: Found) -> None:
    """Say who uses the file, for prune. A lease that cannot be left must not stop the job."""
    name = lease_stem()
    if not name:
        return
    try:
        folder = lease_folder(settings)
    except OSError:
        return
    try:
        if held(folder, name + ".json") == found.sha256:
            return  # asked again: some file systems write a file out at once when it is renamed over
        temporary = f".{name}.{os.urandom(8).hex()}"
        create(folder, temporary, lease_text(settings, found))
        try:
            try:
                os.rename(temporary, name + ".json", src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:  # another user has taken this name
                other = f"{name}+{os.urandom(8).hex()}.json"
                os.rename(temporary, other, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)
    except OSError:
        return
    finally:
        os.close(folder)


def held(folder: int, name: str) -> str:
    """The sha256 that a lease of ours names; empty when it is missing."""
    try:
        return str(table(json.loads(owned_content(name, (os.getuid(),), folder))).get("sha256"))
    except (OSError, ValueError, RecursionError):
        return ""


def create(folder: int, name: str, content: bytes) -> None:
    """Make a new file in an open folder that others may write to; all may read it."""
    descriptor = os.open(name, CREATE, 0o644, dir_fd=folder)
    try:
        try:  # noqa: SIM105 - contextlib is not needed on every get
            os.removexattr(descriptor, "system.posix_acl_access")  # one that the folder's default ACL gave it
        except OSError:
            pass  # it is missing, or this file system knows no such thing
        os.fchmod(descriptor, 0o644)  # whatever the umask
        os.write(descriptor, content)
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def release(settings: Settings) -> None:
    """Drop this step's lease on this node, and end what it still reads ahead."""
    name = lease_stem()
    if not name:
        return
    end_prefetch(f"{settings.state}/prefetch", name)
    try:
        folder = lease_folder(settings)
    except OSError:
        return
    try:
        if not drop_own(folder, name + ".json"):
            for each in os.listdir(folder):
                if each.startswith(name + "+"):
                    drop_own(folder, each)
    except OSError:
        return
    finally:
        os.close(folder)


def drop_own(folder: int, name: str) -> bool:
    """Remove a file of this user; False when nothing has this name."""
    try:
        status = os.lstat(name, dir_fd=folder)
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            return False
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


# -- Looking at the bytes ----------------------------------------------------------------------------------


def open_file(path: str) -> int:
    """Open a file of bytes: a regular one, no symlink."""
    descriptor = os.open(path, READ | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is not a regular file")
    return descriptor


def is_safe(status: os.stat_result, owners: tuple[int, ...]) -> bool:
    """Whether this is a regular file of one of these users that nobody else can write."""
    return stat.S_ISREG(status.st_mode) and status.st_uid in owners and not status.st_mode & 0o022


def check(descriptor: int, path: str, found: Found) -> None:
    """The file is whole by its size, and begins as a squashfs 4.0 that fits into it."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, SUPERBLOCK, 0)
    used = int.from_bytes(head[40:48], "little")
    whole = size == found.size and len(head) == SUPERBLOCK and used <= size
    if not whole or head[:4] != MAGIC or head[28:30] != b"\4\0":
        what = f"{path} of {found.image}:{found.version}"
        raise Refused(
            f"{what} is damaged ({size} bytes, recorded {found.size}): inform the owner of the store"
        )


def mark_name(descriptor: int, sha256: str) -> str:
    """What the mark of a file is called: another file, or one changed in any way, has another mark."""
    found = os.fstat(descriptor)
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return "-".join([sha256, *(f"{each:x}" for each in parts)])


def is_marked(descriptor: int, sha256: str, state: str, owners: tuple[int, ...]) -> bool:
    """Whether one of `owners` has hashed this open file on this node since it last changed."""
    name = mark_name(descriptor, sha256)
    try:
        return owned_content(f"{state}/verified/{name}", owners) == name.encode()
    except OSError:
        return False


def owned_content(path: str, owners: tuple[int, ...], folder: int | None = None) -> bytes:
    """The first bytes of a file that one of `owners` wrote; empty when another could have written it.

    Raises OSError when it is not there or not readable.
    """
    descriptor = os.open(path, READ | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return read_all(descriptor, 4096) if is_safe(os.fstat(descriptor), owners) else b""
    finally:
        os.close(descriptor)


def verify(descriptor: int, sha256: str, state: str) -> bool:
    """Read an open file and compare its sha256. When it is right, leave the mark that `is_marked` looks for.

    Nothing else makes marks: a mark means that its owner has hashed these bytes. An empty `state` leaves no
    mark, nor does a folder that is not there.
    """
    import hashlib

    name = mark_name(descriptor, sha256)
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, BLOCK, offset):
        digest.update(block)
        offset += len(block)
    if digest.hexdigest() != sha256:
        return False
    if state and mark_name(descriptor, sha256) == name:  # else it was changed while it was read
        leave_mark(f"{state}/verified", name)
    return True


def leave_mark(path: str, name: str) -> None:
    """A file that contains its own name, so that no other file of the same owner can pass for it.

    The folder is for all users: what others planted there is replaced, never written to.
    """
    try:
        folder = os.open(path, FOLDER | os.O_NOFOLLOW)
    except OSError:
        return  # no importer is installed here
    try:
        temporary = f".{os.urandom(8).hex()}"
        create(folder, temporary, name.encode())
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)  # another user's, in a sticky folder
    except OSError:
        return
    finally:
        os.close(folder)


def local_copy(settings: Settings, found: Found) -> str:
    """A prewarmed copy on this node, when it is whole and by somebody trusted; else empty."""
    path = f"{settings.local}/{found.sha256}.sqsh"
    if not settings.local or not os.path.lexists(path):
        return ""
    try:
        folder = os.stat(settings.local)
        is_open = folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX
        if is_open or folder.st_uid not in settings.owners():
            raise Refused(f"others may put another file in its place: {settings.local}")
        descriptor = open_file(path)
        try:
            if not is_safe(os.fstat(descriptor), settings.owners()):
                return ""
            check(descriptor, path, found)
            compare(descriptor, path, found, settings)
        finally:
            os.close(descriptor)
    except (Refused, OSError) as why:
        say(f"not using a local copy: {why}")
        return ""
    return path


def compare(descriptor: int, path: str, found: Found, settings: Settings) -> None:
    """The whole file has the recorded sha256: read once a node, then known by the mark."""
    if is_marked(descriptor, found.sha256, settings.state, settings.owners()):
        return
    found.was_read = True
    if not verify(descriptor, found.sha256, settings.state):
        what = f"{path} of {found.image}:{found.version}"
        raise Refused(f"{what} has changed its bytes: inform the owner of the store")


def look_at(path: str, found: Found, settings: Settings) -> None:
    """The file in the store is as recorded."""
    try:
        descriptor = open_file(path)
    except OSError as error:
        raise Refused(f"cannot read {path} of {found.image}:{found.version}: {error.strerror}") from None
    try:
        check(descriptor, path, found)
        if settings.verify:
            compare(descriptor, path, found, settings)
    finally:
        os.close(descriptor)


def get(settings: Settings, text: str) -> str:
    try:
        wanted = Wanted(text)
        found = find(settings, wanted)
    except NotPublished:
        if settings.missing != "import" or os.path.lexists(POLICY):
            raise
        return import_once(settings, text)
    leave_lease(settings, found)
    try:
        path = local_copy(settings, found)
        if not path:
            found, path = in_store(settings, wanted, found)
    except BaseException:
        release(settings)
        raise
    if settings.prefetch_mib > 0 and not found.was_read:
        prefetch(settings, found, path)
    return path


def in_store(settings: Settings, wanted: Wanted, found: Found) -> tuple[Found, str]:
    """The file in the store, looked at; a second time after a moment, since new names come late on NFS."""
    path = f"{settings.store}/{found.file}"
    try:
        look_at(path, found, settings)
    except Refused:
        time.sleep(0.3)
        again = find(settings, wanted)
        if again.sha256 != found.sha256:  # a channel moved meanwhile
            leave_lease(settings, again)
        path = f"{settings.store}/{again.file}"
        look_at(path, again, settings)
        return again, path
    return found, path


# -- Reading ahead what a start needs ----------------------------------------------------------------------


def prefetch(settings: Settings, found: Found, path: str) -> None:
    """Read ahead what the newest start-up profile of the release names, in a process of its own.

    Nothing here may stop the job, and outside of a job nobody would end that process.
    """
    folder = f"{settings.store}/{found.image}/.meta/{stem(found.version)}"
    step = lease_stem()
    if not step or not os.path.lexists(folder + "/startup-1.json"):
        return
    size = found.size if isinstance(found.size, int) else 0

    def work() -> None:
        limit = prefetch_limit(settings.prefetch_mib << 20)
        read_ahead(path, startup_ranges(newest_profile(folder), found.sha256, size, limit))

    try:
        in_background(f"{settings.state}/prefetch", found.sha256, step, work)
    except (OSError, Refused):
        return


def in_background(folder: str, sha256: str, holder: str, work: Callable[[], object]) -> int:
    """Run `work` in a child of its own session, once for a file on this node; the child's pid, or 0.

    Its file in `folder` (`SHA256-UID`: "PID HOLDER") is locked while the child lives, so that all know
    whether it does, and says for ten minutes afterwards that the work has been done. Raises OSError, Refused.
    """
    own = f"{sha256}-{os.getuid()}"
    names = [each for each in list_folder(folder) if each.startswith(sha256) and each != own]
    if any(is_fresh(f"{folder}/{each}") for each in names):
        return 0
    descriptor = new_lock(f"{folder}/{own}")
    if descriptor < 0:
        return 0
    try:
        pid = os.fork()
        if pid == 0:
            alone(descriptor, work)
        os.pwrite(descriptor, f"{pid} {holder}".encode(), 0)
        return pid
    finally:
        os.close(descriptor)


def new_lock(path: str) -> int:
    """A new file of this name, locked; -1 while an earlier one is in use or says that the work has been done.

    Only a file that was made here is written to: what is there may be a hard link to another file of ours.
    """
    import fcntl

    for _ in range(4):
        try:
            descriptor = os.open(path, CREATE, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except FileExistsError:  # noqa: PERF203 - seldom
            if not remove_done(path):
                break
    return -1


def remove_done(path: str) -> bool:
    """Remove the file of work that ended a while ago; False while it is in use, new or another user's."""
    import fcntl

    descriptor = -1
    try:
        descriptor = os.open(path, READ | os.O_NOFOLLOW)
        status = os.fstat(descriptor)
        # who has just made it is about to lock it
        if not is_own(status) or time.time() - status.st_mtime < (PREFETCH_AGAIN if status.st_size else 10):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(status, os.lstat(path)):
            os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def is_fresh(path: str) -> bool:
    """Whether another user reads the same file or has read it just now; their file goes with their step."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    young = 0 <= time.time() - status.st_mtime < PREFETCH_AGAIN
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and young


def is_own(status: os.stat_result) -> bool:
    """Whether only this user can have written a file, which has no other name that leads to another use."""
    return is_safe(status, (os.getuid(),)) and status.st_nlink == 1


def alone(lock: int, work: Callable[[], object]) -> None:
    """The child: it keeps nothing of the caller's but the lock, so that nobody waits for it. No return."""
    try:
        os.nice(5)
        time.sleep(0.005)  # the caller's answer comes first
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):  # closed, but no file that is opened later may get their numbers
            os.dup2(null, standard)
        os.closerange(3, lock)
        os.closerange(lock + 1, 4096)
        work()
    finally:
        os._exit(0)


def end_prefetch(folder: str, holder: str) -> None:
    """End what this holder has started, and remove its files."""
    mine = f"-{os.getuid()}"
    try:
        names = [each for each in os.listdir(folder) if each.endswith(mine)]
    except OSError:
        return
    for name in names:
        try:
            end_one(f"{folder}/{name}", holder)
        except (OSError, ValueError):  # noqa: PERF203 - the next one may be ours
            continue


def end_one(path: str, holder: str) -> None:
    import fcntl

    descriptor = os.open(path, READ | os.O_NOFOLLOW)
    try:
        if not is_own(os.fstat(descriptor)):
            return
        pid, _, of = read_all(descriptor, 256).decode().partition(" ")
        if of != holder:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.kill(int(pid), 9)  # it lives, since it holds the lock
        os.unlink(path)
    finally:
        os.close(descriptor)


def newest_profile(folder: str) -> str:
    """Path of the start-up profile with the highest number; Refused when it is missing."""
    texts = [each[8:-5] for each in list_folder(folder) if each[:8] == "startup-" and each[-5:] == ".json"]
    numbers = [int(each) for each in texts if each.isascii() and each.isdecimal() and len(each) < 10]
    if not numbers:
        raise Refused(f"{folder} has no start-up profile")
    return f"{folder}/startup-{max(numbers)}.json"


def startup_ranges(path: str, sha256: str, size: int, limit: int) -> list[tuple[int, int]]:
    """The ranges (start, length) of a start-up profile, up to `limit` bytes together.

    Raises Refused for what is not a sound profile of the file with this sha256 and size.
    """
    raw = read(path, limit=PROFILE)
    table = parse(path, raw, sealed=True) if raw is not None else {}
    ranges = table.get("ranges")
    if (table.get("sha256"), table.get("size")) != (sha256, size):
        raise Refused(f"{path} is the start-up profile of another file")
    if type(ranges) is not list or len(ranges) > RANGES or not all(map(is_range, ranges)):
        raise Refused(f"{path} is not a list of at most {RANGES} ranges")
    end = 0
    for start, length in sorted(ranges):
        if start < end or start + length > size:
            raise Refused(f"{path} has ranges that overlap or lie outside the file")
        end = start + length
    taken = []
    for start, length in ranges:
        if limit > 0:
            taken.append((start, min(length, limit)))
        limit -= length
    return taken


def is_range(value: object) -> bool:
    if type(value) is not list or len(value) != 2:
        return False
    start, length = value
    return type(start) is type(length) is int and start >= 0 and length > 0


def prefetch_limit(most: int) -> int:
    """At most so many bytes, and a tenth of the memory that this node has free."""
    with open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(b"MemAvailable:"):
                return min(most, int(line.split()[1]) * 1024 // 10)
    return 0


def read_ahead(path: str, ranges: list[tuple[int, int]], seconds: float = PREFETCH_SECONDS) -> int:
    """Read ranges into the page cache, several at a time, for so long at most; gives how many bytes it read.

    Raises OSError and Refused as `open_file` does; what cannot be read is left out.
    """
    import _thread

    pieces = [
        (at, min(PIECE, start + length - at))
        for start, length in ranges
        for at in range(start, start + length, PIECE)
    ]
    pieces.reverse()
    end = time.monotonic() + seconds
    descriptor = open_file(path)
    done = []

    def reader(running: _thread.LockType) -> None:
        buffer = memoryview(bytearray(PIECE))
        try:
            while time.monotonic() < end:
                start, length = pieces.pop()
                while length > 0 and (had := os.preadv(descriptor, [buffer[:length]], start)) > 0:
                    done.append(had)
                    start, length = start + had, length - had
        except (IndexError, OSError):  # nothing is left to read, or the file cannot be read
            return
        finally:
            running.release()

    readers = [_thread.allocate_lock() for _ in range(min(READERS, len(pieces)))]
    for each in readers:
        each.acquire()
        _thread.start_new_thread(reader, (each,))
    for each in readers:
        each.acquire()
    os.close(descriptor)
    return sum(done)


# -- What is not published ---------------------------------------------------------------------------------


def own_folder(parent: str, usual: str) -> str:
    """A folder that only this user can write, below a folder that all users share.

    Another name is used when another user has taken the usual one.
    """
    taken = [each for each in list_folder(parent) if each.startswith(f"{usual}+")]
    for name in [usual, *taken, f"{usual}+{os.urandom(8).hex()}"]:
        path = f"{parent}/{name}"
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
        return path
    raise Refused(f"{parent} has no folder for user {os.getuid()}")


def import_once(settings: Settings, text: str) -> str:
    """Run enroot import into this user's cache on this node; the others of the node wait and share it."""
    import fcntl
    import hashlib

    os.makedirs(f"{settings.state}/imported", exist_ok=True)
    folder = own_folder(f"{settings.state}/imported", str(os.getuid()))
    oldest = time.time() - 3600 * settings.cache_hours
    path = f"{folder}/{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}.sqsh"
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # node-local, and this user's own: sure to work, and nobody else's
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".sqsh") and entry.stat().st_mtime < oldest:
                    drop(entry.path)
        if not os.path.exists(path):
            run_enroot(settings, text, path)
    return path


def run_enroot(settings: Settings, text: str, path: str) -> None:
    import subprocess

    temporary = f"{path}.{os.getpid()}.partial.sqsh"
    drop(temporary)
    command = [settings.enroot, "import", "--output", temporary, text]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False)
        if done.returncode:
            raise Refused(f"{text} is not published, and enroot import failed ({done.returncode})")
        with open(temporary, "rb") as file:
            if file.read(4) != MAGIC:
                raise Refused(f"{text} is not published, and enroot import made no squashfs")
        os.rename(temporary, path)
    except OSError as error:
        raise Refused(f"{text} is not published, and enroot import failed: {error}") from None
    finally:
        drop(temporary)


def drop(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


# -- The program -------------------------------------------------------------------------------------------


def read_settings(program: str) -> Settings:
    """What the file beside the program contains; beside what it is a link to, when it is one."""
    for beside in (f"{program}.json", f"{os.path.dirname(os.path.realpath(program))}/pyxis-importer.json"):
        raw = read(beside, flags=0)
        if raw is not None:
            settings = Settings(parse(beside, raw))
            if settings.store:
                return settings
    raise Refused(f"{beside} names no store: run `sqshpipe node install` on this node")


def main(arguments: list[str]) -> int:
    try:
        settings = read_settings(os.path.abspath(__file__))
        if arguments == ["release"]:
            release(settings)
            return 0
        if len(arguments) != 2 or arguments[0] != "get":
            say("usage: pyxis-importer get docker://REFERENCE | pyxis-importer release")
            return 2
        path = get(settings, arguments[1])
        os.write(1, os.fsencode(path) + b"\n")
    except Refused as error:
        say(str(error))
        return 0 if arguments == ["release"] else error.exit_code
    except OSError as error:
        say(f"{error.filename or arguments[-1]}: {error.strerror}")
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # taking the interpreter down is a ninth of the whole call
