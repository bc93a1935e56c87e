#!/usr/bin/python3 -IS
"""pyxis-importer: give pyxis the published .sqsh that a user named, without importing anything.

    pyxis-importer get docker://IMAGE[:VERSION|:CHANNEL]
    pyxis-importer get docker://HOST/REPO[:TAG|@sha256:DIGEST], also HOST#REPO and USER@HOST#REPO
    pyxis-importer release

plugstack.conf:  required spank_pyxis.so use_squashfuse=1 importer=PREFIX/bin/pyxis-importer

`get` prints one absolute path; all else goes to stderr, which pyxis shows when `get` fails. It runs as the
job's user on every node of a step at once, so it takes no lock, writes nothing but a lease (who uses the
file), and works on a store that users can only read. `release` drops the lease, any number of times.
Settings: pyxis-importer.json beside this file, which stands alone: Python 3.8, standard library only.
"""

from __future__ import annotations

import posix  # as os, whose import takes longer than a look-up
import sys
import time

TYPE_CHECKING = False  # typing's own takes longer to import than a look-up takes
if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
LATEST = "latest"
USUAL_PLATFORM = "linux/amd64"
MACHINES = {"x86_64": USUAL_PLATFORM, "aarch64": "linux/arm64"}
HUBS = ("docker.io", "index.docker.io", "registry-1.docker.io")
NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
HEX = frozenset("0123456789abcdef")
WORDS = {"true": True, "false": False, "null": None}
MAGIC = b"hsqs"
SUPERBLOCK = 96
OPENED, CLOSED = b'"releases": {\n', b"\n}}\n"  # between them: one release a line
STATES = {"hidden": "about to be pruned", "pruned": "pruned", "yanked": "withdrawn", "damaged": "damaged"}


class Refused(Exception):
    """No file for this reference; the text is for the user."""


class NotPublished(Refused):
    """The store has nothing of this name: what the setting `missing` is about."""


class Settings:
    """What pyxis-importer.json may say."""

    store = ""  # root of the releases
    leases = ""  # where leases are left; empty: STORE/leases
    registries: tuple[str, ...] | list[str] = ()  # HOST/PREFIX whose repositories are the images of the store
    missing = "refuse"  # or "import": run enroot import into a cache of this node
    enroot = "enroot"
    state = "/var/lib/sqshpipe"  # node-local, mode 1777: marks of checked files, imported images
    local = ""  # node-local folder of prewarmed copies, preferred when there
    trusted_uids: tuple[int, ...] | list[int] = (0,)  # whose copies in `local` count, besides the user's own
    verify = False  # compare the whole file's sha256, once a node and digest
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


class Wanted:
    """What the user wrote, taken apart: repository, image (its last part), version or channel, digest.

    Without a host it is just an image of the store; two names without a host are Docker Hub's, as ever.
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
            raise Refused(f"{text} is not an image reference that can be looked up")

    def is_repository(self, name: str) -> bool:
        """Whether `name` (host/repository, as records have it) is what the user means."""
        return name == f"{self.host}/{self.repository}"


class Found:
    """A file of the store, as index.json or a record tells."""

    def __init__(self, image: str, version: str, entry: dict[str, object]) -> None:
        self.image, self.version = image, version
        self.sha256, self.file = str(entry.get("sha256")), str(entry.get("file"))
        self.size = entry.get("size")
        if not is_digest(self.sha256) or self.file != f"blobs/sha256/{self.sha256}.sqsh":
            raise Refused(f"the store's entry of {image}:{version} is damaged; tell its owner")


def is_name(text: str) -> bool:
    return 0 < len(text) <= 128 and text[0] not in ".-" and NAME.issuperset(text)


def is_digest(text: str) -> bool:
    return len(text) == 64 and HEX.issuperset(text)


def tail_of(digest: object) -> str:
    return str(digest).rpartition(":")[2]


def table(value: object, *keys: str) -> dict[str, object]:
    """The JSON object at a path of keys; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def parse_json(data: bytes) -> object:
    """As json.loads, without json, re or a library to be loaded where the store itself wrote the text."""
    text = data.decode("utf-8").strip()
    try:
        return read_plain(text)
    except ValueError:
        return read_any(text)


def read_plain(text: str) -> object:
    """JSON with plain strings (printable, no escapes) and whole numbers; ValueError for all else.

    It is cut at its quotes: every second piece is a string. The others, with a quote in the place of each
    string, are the structure.
    """
    pieces = text.split('"')
    strings, structure = pieces[1::2], '"'.join(pieces[::2])
    printable = "".join(strings).isprintable() and structure.replace("\n", " ").isprintable()
    if "\\" in text or len(pieces) % 2 == 0 or not printable:
        raise ValueError("not plain")
    for sign in '"{}[]:,':
        structure = structure.replace(sign, f" {sign} ")
    signs = iter(structure.split())
    value = plain_value(next(signs, ""), signs, iter(strings))
    if next(signs, ""):
        raise ValueError("more than one value")
    return value


def plain_value(sign: str, signs: Iterator[str], strings: Iterator[str]) -> object:
    """The value that begins with `sign`."""
    if sign == '"':
        return next(strings)
    if sign == "{":
        entries = {}
        for quote in members(signs, "}"):
            key = next(strings, "")
            if quote != '"' or next(signs, "") != ":":
                raise ValueError("no name")
            entries[key] = plain_value(next(signs, ""), signs, strings)
        return entries
    if sign == "[":
        return [plain_value(each, signs, strings) for each in members(signs, "]")]
    if sign in WORDS:
        return WORDS[sign]
    number = int(sign)
    if str(number) != sign:
        raise ValueError("no plain number")
    return number


def members(signs: Iterator[str], end: str) -> Iterator[str]:
    """What each member begins with, up to the closing `end`; the caller takes the rest of each."""
    sign = next(signs, "")
    while sign != end:
        yield sign
        after = next(signs, "")
        sign = next(signs, "") if after == "," else after
        if (after == ",") == (sign == end):
            raise ValueError("not one comma between two members")


def read_any(text: str) -> object:
    """By the scanner beneath json, whose import takes longer than all else here."""

    class Scanning:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int = float, int
        parse_constant = float

    try:
        from _json import make_scanner

        value, end = make_scanner(Scanning)(text, 0)  # type: ignore[arg-type]
    except StopIteration:
        raise ValueError("not JSON") from None
    except (ImportError, AttributeError, TypeError):
        import json

        return json.loads(text)
    if end != len(text):
        raise ValueError("more than one value")
    return value


def read(path: str) -> bytes:
    """The bytes of a small file of the store; none when it is missing."""
    for attempt in range(4):  # a file renamed over while it is opened is stale on NFS: open the new one
        try:
            descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                return read_all(descriptor, posix.fstat(descriptor).st_size)
            finally:
                posix.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):  # noqa: PERF203 - the loop is left at once
            break
        except OSError as error:
            if attempt == 3:
                raise Refused(f"cannot read {path}: {error.strerror}") from None
    return b""


def read_all(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes, however many a read gives at once."""
    data = posix.read(descriptor, size)
    while 0 < len(data) < size:
        more = posix.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


def read_table(path: str) -> dict[str, object]:
    """A JSON object of the store; empty when it is missing or broken, so that another source is asked."""
    return checked_table(path, read(path))


def checked_table(path: str, data: bytes) -> dict[str, object]:
    try:
        found = table(parse_json(data))
    except (ValueError, RecursionError):
        return {}
    schema = found.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise Refused(f"{path} is newer than this importer; run `sqshpipe cluster install` on the nodes")
    return found


class Index:
    """An image's index.json: what channels name, and one release, without parsing all the others.

    The store writes one release a line after everything else. Written otherwise, it is the same JSON still.
    """

    def __init__(self, path: str) -> None:
        self.path, self.data = path, read(path)
        self.start = self.data.find(OPENED)
        self.head: dict[str, object] = {}
        if self.start > 0 and self.data.endswith(CLOSED):
            self.head = checked_table(path, self.data[: self.start] + OPENED + b"}}")
        self.by_line = bool(self.head)
        self.head = self.head or checked_table(path, self.data)

    def release(self, version: str) -> dict[str, object]:
        """One release; empty when there is none of this version."""
        if not self.by_line:
            return table(self.head, "releases", version)
        start = self.data.rfind(f'\n"{version}": '.encode(), self.start)
        if start < 0:
            return {}
        line = self.data[start + 1 : self.data.find(b"\n", start + 1)]
        return table(checked_table(self.path, b"{" + line.rstrip(b",") + b"}"), version)

    def all(self) -> dict[str, object]:
        """Everything, for what is seldom asked."""
        return checked_table(self.path, self.data) if self.by_line else self.head


def environment(name: str) -> str:
    return posix.environ.get(name.encode(), b"").decode("utf-8", "replace")


def exists(path: str) -> bool:
    """Whether there is something of this name, be it a dangling link."""
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def list_folder(path: str) -> list[str]:
    try:
        return sorted(posix.listdir(path))
    except OSError:
        return []


def say(text: str) -> None:
    """One line to stderr, at once."""
    try:
        posix.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody listens


def platform() -> str:
    machine = posix.uname().machine
    return MACHINES.get(machine, "linux/" + machine)


def stem(version: str) -> str:
    """The file name of a version: other platforms than the usual one have a suffix."""
    return version if platform() == USUAL_PLATFORM else version + "." + platform().replace("/", "-")


def find(settings: Settings, wanted: Wanted) -> Found:
    """The file that a reference names, by index.json, else by its record."""
    root = settings.store
    folder = f"{root}/{wanted.image}"
    index = Index(folder + "/index.json")
    if wanted.digest:
        version = version_of_digest(folder, wanted.digest, index.all())
    else:
        version = version_of_name(folder, wanted.name or LATEST, index.head)
    if not is_name(version):
        raise not_published(root, wanted, index.all())
    release = index.release(version)
    entry = table(release, "platforms", platform())
    state = str(release.get("state", "published"))
    from_elsewhere = wanted.host and not wanted.digest and not is_ours(settings, wanted)
    record = {} if entry and not from_elsewhere else read_table(f"{folder}/{stem(version)}.json")
    if not entry:
        entry, state = record, state if release else state_of_record(folder, version)
    if not entry or (from_elsewhere and not made_from(record, wanted)):
        raise not_published(root, wanted, index.all())
    if state != "published":
        raise Refused(f"{wanted.image}:{version} is {STATES.get(state, state)}{known(wanted, index.all())}")
    return Found(wanted.image, version, entry)


def version_of_name(folder: str, name: str, index: dict[str, object]) -> str:
    """A channel's version, else the name itself."""
    version = table(index, "channels").get(name)
    if version is None and not index:
        try:
            link = posix.readlink(f"{folder}/{stem(name)}.sqsh").rpartition("/")[2]
        except OSError:
            return name
        version = link[: -len(".sqsh")].replace("." + platform().replace("/", "-"), "")
        return name if is_digest(version) else version  # a version's own link leads to its bytes
    return str(version or name)


def version_of_digest(folder: str, digest: str, index: dict[str, object]) -> str:
    """The newest version made from an image of this digest, or whose file has it; published first."""
    found = []
    for version, release in table(index, "releases").items():
        for each in table(release, "platforms").values():
            if digest in (tail_of(table(each).get("source")), table(each).get("sha256")):
                state = table(release).get("state")
                found.append((state == "published", str(table(release).get("created")), version))
    for name in [] if index else list_folder(folder):
        record = read_table(f"{folder}/{name}") if name.endswith(".json") else {}
        if digest in (tail_of(table(record, "source").get("digest")), record.get("sha256")):
            found.append((True, str(record.get("created")), str(record.get("version"))))
    return max(found)[2] if found else ""


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


def state_of_record(folder: str, version: str) -> str:
    """Without an index: a version that is not to be started any more has lost its link."""
    return "published" if exists(f"{folder}/{stem(version)}.sqsh") else "withdrawn"


def known(wanted: Wanted, index: dict[str, object]) -> str:
    """What of this image could be meant instead: what is spelled alike, then the newest."""
    from difflib import get_close_matches

    releases = table(index, "releases")
    names = [each for each in releases if table(releases, each).get("state") == "published"]
    names.sort(key=lambda each: str(table(releases, each).get("created")), reverse=True)
    near = get_close_matches(wanted.name, names, 4, 0.4) + names[:4] + list(table(index, "channels"))
    return (
        "; there is: " + ", ".join(f"{wanted.image}:{each}" for each in dict.fromkeys(near)) if near else ""
    )


def not_published(root: str, wanted: Wanted, index: dict[str, object]) -> NotPublished:
    from difflib import get_close_matches

    version = version_of_name(f"{root}/{wanted.image}", wanted.name or LATEST, index)
    platforms = table(index, "releases", version, "platforms")
    if platforms and platform() not in platforms:
        there = ", ".join(sorted(platforms))
        return NotPublished(f"{wanted.text} is not published for {platform()}, only for {there}")
    hint = known(wanted, index)
    if not index:
        images = [each for each in list_folder(root) if is_name(each) and list_folder(f"{root}/{each}")]
        images = [each for each in images if each not in ("blobs", "leases")]
        near = get_close_matches(wanted.image, images, 3, 0.5) or images[:8]
        hint = "; did you mean one of: " + ", ".join(near) if near else "; there is no image at all"
    return NotPublished(f"{wanted.text} is not published in {root}{hint}")


def node_name() -> str:
    """This node as Slurm calls it, else the host: one host may carry several nodes.

    SLURMD_NODENAME would tell it too, but is gone when pyxis releases; the topology address is there both
    times, as NODE or SWITCH.….NODE.
    """
    above = environment("SLURM_TOPOLOGY_ADDR_PATTERN").count(".")
    return clean(environment("SLURM_TOPOLOGY_ADDR").split(".", above)[-1] or posix.uname().nodename)


def lease_names(settings: Settings) -> list[str]:
    """What this step's lease on this node may be called."""
    job, step = environment("SLURM_JOB_ID"), environment("SLURM_STEP_ID")
    if not job.isdigit():
        return []
    leases = settings.leases or f"{settings.store}/leases"
    name = f"job-{job}.{clean(step) or 0}-{node_name()}-{posix.getuid()}"
    return [f"{leases}/{name}{more}.json" for more in ("", "-1", "-2")]  # others may squat on a name


def clean(text: str) -> str:
    return "".join(filter(NAME.__contains__, text))


def leave_lease(settings: Settings, found: Found) -> None:
    """Say who uses the file, for prune. A lease that cannot be left must not stop the job."""
    now = time.time()
    end = environment("SLURM_JOB_END_TIME")
    sane = end.isdecimal() and len(end) <= 10  # seconds until the year 2286
    until = int(end) + 3600 if sane else now + 3600 * settings.lease_hours
    stamp = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each)) for each in (now, until)]
    values = (
        ("sha256", found.sha256), ("image", found.image), ("version", found.version),
        ("host", node_name()), ("job", environment("SLURM_JOB_ID")),
        ("step", clean(environment("SLURM_STEP_ID"))), ("uid", posix.getuid()),
        ("cluster", clean(environment("SLURM_CLUSTER_NAME") or settings.cluster)),
        ("created", stamp[0]), ("expires", stamp[1]),
    )  # fmt: skip
    text = ", ".join(f'"{key}": {each}' if key == "uid" else f'"{key}": "{each}"' for key, each in values)
    for path in lease_names(settings):
        if is_safe(path, (posix.getuid(),)) and read_table(path).get("sha256") == found.sha256:
            return  # asked again: some file systems write a file out at once when it is renamed over
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.{posix.getpid()}"
        try:
            flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
            descriptor = posix.open(temporary, flags, 0o644)
            try:
                posix.fchmod(descriptor, 0o644)  # whoever prunes must be able to read it
                posix.write(descriptor, (f'{{"schema": 1, {text}}}\n').encode())
            finally:
                posix.close(descriptor)
            posix.rename(temporary, path)
        except OSError:
            drop(temporary)
        else:
            return


def drop(path: str) -> None:
    try:
        posix.unlink(path)
    except OSError:
        return


def check(path: str, found: Found) -> None:
    """The file is there, whole by its size, and begins as a squashfs 4.0 that fits into it."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            size = posix.fstat(descriptor).st_size
            head = read_all(descriptor, SUPERBLOCK)
        finally:
            posix.close(descriptor)
    except OSError as error:
        raise Refused(f"cannot read {path} of {found.image}:{found.version}: {error.strerror}") from None
    used = int.from_bytes(head[40:48], "little")
    whole = size == found.size and len(head) == SUPERBLOCK and used <= size
    if not whole or head[:4] != MAGIC or head[28:30] != b"\4\0":
        what = f"{path} of {found.image}:{found.version}"
        raise Refused(f"{what} is damaged ({size} bytes, recorded {found.size}); tell the store's owner")


def verify(path: str, found: Found, settings: Settings, *, trusted: bool) -> None:
    """Compare the whole file's sha256, once a node: a mark tells which file (inode, time) was read."""
    stat = posix.stat(path)
    folder = f"{settings.state}/verified"
    mark = f"{folder}/{found.sha256}-{stat.st_dev:x}-{stat.st_ino:x}-{stat.st_mtime_ns:x}"
    if (trusted and exists(mark)) or is_safe(mark, (*settings.trusted_uids, posix.getuid())):
        return
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        block = file.read(1 << 22)
        while block:
            digest.update(block)
            block = file.read(1 << 22)
    if digest.hexdigest() != found.sha256:
        raise Refused(
            f"{path} of {found.image}:{found.version} has changed its bytes; tell the store's owner"
        )
    try:
        # nobody's link is followed: the folder is for all users
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
        posix.close(posix.open(mark, flags, 0o644))
    except OSError:
        return


def is_safe(path: str, owners: tuple[int, ...]) -> bool:
    """Whether this is a file of one of these users that nobody else can write."""
    try:
        stat = posix.lstat(path)
    except OSError:
        return False
    return stat.st_uid in owners and stat.st_mode & 0o170022 == 0o100000


def local_copy(settings: Settings, found: Found) -> str:
    """A prewarmed copy on this node, when it is whole and by somebody trusted; else empty."""
    path = f"{settings.local}/{found.sha256}.sqsh"
    if not settings.local or not is_safe(path, (*settings.trusted_uids, posix.getuid())):
        return ""
    try:
        check(path, found)
        verify(path, found, settings, trusted=False)
    except (Refused, OSError) as why:
        say(f"pyxis-importer: not using a local copy: {why}")
        return ""
    return path


def get(settings: Settings, text: str) -> str:
    try:
        wanted = Wanted(text)
        found = find(settings, wanted)
    except NotPublished:
        if settings.missing != "import":
            raise
        return import_once(settings, text)
    leave_lease(settings, found)
    try:
        return local_copy(settings, found) or checked(settings, wanted, found)
    except BaseException:
        release(settings)
        raise


def checked(settings: Settings, wanted: Wanted, found: Found) -> str:
    """The file in the store, looked at; a second time after a moment, since new names come late on NFS."""
    path = f"{settings.store}/{found.file}"
    try:
        check(path, found)
    except Refused:
        time.sleep(0.3)
        again = find(settings, wanted)
        if again.sha256 != found.sha256:  # a channel moved on meanwhile
            leave_lease(settings, again)
        found, path = again, f"{settings.store}/{again.file}"
        check(path, found)
    if settings.verify:
        verify(path, found, settings, trusted=True)
    return path


def release(settings: Settings) -> None:
    for path in lease_names(settings):
        drop(path)


def import_once(settings: Settings, text: str) -> str:
    """Run enroot import into this user's cache on this node; the others of the node wait and share it."""
    import fcntl
    import hashlib
    import os
    import subprocess

    folder = f"{settings.state}/imported/{os.getuid()}"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.lstat(folder).st_uid != os.getuid():
        raise Refused(f"{folder} belongs to somebody else")
    oldest = time.time() - 3600 * settings.cache_hours
    path = f"{folder}/{hashlib.sha256(text.encode()).hexdigest()}.sqsh"
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # node-local, and this user's own: sure to work, and nobody else's
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".sqsh") and entry.stat().st_mtime < oldest:
                    drop(entry.path)
        if not os.path.exists(path):
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
    return path


def read_settings(program: str) -> Settings:
    """What the file beside the program says; beside what it is a link to, when it is one."""
    beside = f"{program}.json"
    values = read_table(beside)
    if not values:
        import os

        beside = os.path.dirname(os.path.realpath(program)) + "/pyxis-importer.json"
        values = read_table(beside)
    settings = Settings(values)
    if not settings.store:
        raise Refused(f"{beside} names no store; run `sqshpipe cluster install` on this node")
    return settings


def main(arguments: list[str]) -> int:
    try:
        settings = read_settings(__file__)
        if arguments == ["release"]:
            release(settings)
            return 0
        if len(arguments) != 2 or arguments[0] != "get":
            say("usage: pyxis-importer get docker://REFERENCE | pyxis-importer release")
            return 2
        path = get(settings, arguments[1])
        posix.write(1, path.encode(sys.getfilesystemencoding(), "surrogateescape") + b"\n")
    except Refused as error:
        say(f"pyxis-importer: {error}")
        return 0 if arguments == ["release"] else 1
    except OSError as error:
        say(f"pyxis-importer: {error.filename or arguments[-1]}: {error.strerror}")
        return 1
    return 0


if __name__ == "__main__":
    posix._exit(main(sys.argv[1:]))  # noqa: SLF001 - tearing the interpreter down takes as long as a look-up
