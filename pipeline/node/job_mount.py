"""Kernel mounts that root makes for the jobs of users: from a job's prolog to its epilog.

A kernel that mounts a file reads it as root, so a file counts only when a release of the store names it that
was built and compared here, and when nobody but its owner can write it. The bytes can still change below a
mount: see docs/security.md.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import FormatError, SqshpipeError, ToolError
from pipeline.node import mounted_file, pyxis_importer, shared_mount, shim
from pipeline.node.pyxis_importer import Refused, Settings
from pipeline.node.user_mount import User
from pipeline.slurm import client
from pipeline.squashfs.reader import SquashfsImage
from pipeline.store import trust
from pipeline.store.layout import Layout
from pipeline.system.log import log

EXPIRY = 600.0  # seconds after which a job is looked for that has had no epilog; less than prune's grace
MOST_NAMED = 64  # files that the comment of one job may name: each is looked for in the whole store
_GONE = ("damaged", "pruned")
_CHECKED = "tree"
KERNEL = (6, 2)  # the first that shows a squashfs with other owners
_HINT = "steps read this image through squashfuse"


def settings_of(path: Path) -> Settings:
    """The settings of this node's importer. Raises ToolError when they are missing or not valid."""
    try:
        raw = pyxis_importer.read(str(path), flags=0)
        if raw is None:
            raise ToolError(f"{path} is missing", hint="run `sqshpipe node install` on this node")
        settings = Settings(pyxis_importer.parse(str(path), raw))
    except Refused as error:
        raise ToolError(str(error)) from error
    if settings.mounts not in ("kernel", "fuse"):
        raise ToolError(f"{path}: mounts is neither kernel nor fuse")
    return settings


def acquire_all(
    settings: Settings, digests: Sequence[str], job: str, user: User
) -> tuple[list[Path], list[str]]:
    """The folders where this user sees the files; and for each file that is not mounted, one sentence why."""
    folders, failed = [], []

    def attempt(digest: str) -> None:
        try:
            folders.append(acquire(settings, digest, job, user))
        except (ToolError, FormatError) as error:
            failed.append(str(error))

    if settings.mounts == "kernel":
        expire()
        wanted = list(dict.fromkeys(digests))
        for digest in wanted[:MOST_NAMED]:
            attempt(digest)
        if wanted[MOST_NAMED:]:
            failed.append(
                f"the job names {len(wanted)} files: those after the first {MOST_NAMED} are ignored"
            )
    return folders, failed


def acquire(settings: Settings, sha256: str, job: str, user: User) -> Path:
    """Mount a file of the store for the job of a user, and give the folder where this user sees it.

    Raises ToolError or FormatError, with the reason, when it is not mounted: the job then reads it through
    squashfuse.
    """
    published = Path(f"{settings.store}/blobs/sha256").resolve() / f"{sha256}.sqsh"
    try:
        found = _release_of(settings, sha256)
        local = pyxis_importer.local_copy(settings, found)
        names = [str(published), *([str(Path(settings.local).resolve() / published.name)] if local else [])]
        file = _to_mount(shared_mount.node_folder(), sha256, names)
        with _checked(settings, file, found, whole=file != published) as opened:
            if not _may_read(published, user):
                raise Refused(f"user {user.uid} may not read it")
            holder = shared_mount.job_holder(job, user)
            most = max(settings.kernel_mounts, 0)
            mounted = shared_mount.acquire(file, sha256, holder, kind="kernel", most=most, opened=opened)
        try:
            if mounted_file.path_of(mounted.folder) not in names:
                raise ToolError(f"{sha256} is the name of another mount of this node")
            return shared_mount.show_to(mounted, user, names)
        except SqshpipeError:
            shared_mount.release(sha256, holder)
            raise
    except (Refused, OSError) as error:
        raise ToolError(f"{published} is not mounted: {error}", hint=_HINT) from error


def _to_mount(node: Path, sha256: str, names: Sequence[str]) -> Path:
    """Which of these paths to mount: the one that is mounted, else the last. Raises Refused when damaged."""
    shared_mount.look_at(node / sha256)
    there, damaged = mounted_file.path_of(node / sha256), mounted_file.damaged(node, sha256)
    sound = [each for each in names if each not in damaged]
    if not sound:
        raise Refused("it is damaged: inform the owner of the store")
    return Path(there if there in sound else sound[-1])


def expire() -> None:
    """Release what jobs hold whose epilog did not run. While Slurm does not answer, they hold it."""
    oldest = time.time() - EXPIRY
    for job, since in shared_mount.job_holders(shared_mount.node_folder()).items():
        if since < oldest:
            with contextlib.suppress(ToolError):
                if not client.job_exists(job):
                    log.warning("a job has ended without an epilog: its mounts are released", job=job)
                    shared_mount.release_job(job)


def report(settings: Path) -> tuple[bool, str]:
    """Whether jobs get kernel mounts on this node, and in one sentence what serves their ranks and why."""
    through = "steps read through squashfuse"
    try:
        found = settings_of(settings)
    except ToolError as error:
        return False, f"{error.headline}: {through}"
    if found.mounts != "kernel":
        return True, f"turned off (mounts: fuse): {through}"
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release < KERNEL:
        return (
            False,
            f"Linux {os.uname().release} shows no squashfs as a user's own files, 6.2 does: {through}",
        )
    first = shim.first_in(_path_of_slurmd())
    if first is None or not shim.is_shim(first):
        ours = settings.parents[1] / "sbin" / "squashfuse"
        return False, (
            f"the first squashfuse in slurmd's PATH is {first or 'missing'}, not that of sqshpipe: {through};"
            f" ln -s {ours} /usr/local/sbin/"
        )
    with contextlib.suppress(ToolError):
        if client.config().get("Prolog", "(null)") == "(null)":
            return False, f"slurm.conf names no Prolog, which makes them (sqshpipe node hooks): {through}"
    return (
        True,
        "the kernel serves jobs whose comment names the digest (sqshpipe job script); others squashfuse",
    )


def changed() -> list[str]:
    """Files that have changed since they were mounted here; those that this user can look at."""
    with contextlib.suppress(ToolError, OSError):
        return [path for path in map(mounted_file.has_changed, shared_mount.folders()) if path]
    return []


def damaged() -> list[str]:
    """Files that were found damaged below their mounts. Where the kernel met errors, files are read whole."""
    with contextlib.suppress(ToolError, OSError):
        for folder in shared_mount.folders():
            if mounted_file.has_changed(folder) or mounted_file.had_errors(folder):
                digest = mounted_file.digest_of(folder)
                mounted_file.examine(folder.parent, digest, mounted_file.path_of(folder))
        return mounted_file.damaged(shared_mount.node_folder())
    return []


def _path_of_slurmd() -> str:
    """PATH as pyxis gives it to enroot: that of slurmd, which root can look up while it runs."""
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and (each / "comm").read_bytes() == b"slurmd\n" and _is_roots(each):
                for word in (each / "environ").read_bytes().split(b"\0"):
                    if word.startswith(b"PATH="):
                        return os.fsdecode(word[5:])
    return ":".join(shim.FOLDERS)


def _is_roots(process: Path) -> bool:
    """Whether root has started a process, from a file of root called slurmd: others may choose its name."""
    uids = re.search(rb"^Uid:\t0\t0\t", (process / "status").read_bytes(), re.MULTILINE)
    program = (process / "exe").readlink()
    return uids is not None and program.name == "slurmd" and program.stat().st_uid == 0


@contextlib.contextmanager
def _checked(settings: Settings, file: Path, found: pyxis_importer.Found, *, whole: bool) -> Iterator[int]:
    """A descriptor of a release's file, after the checks that a mount by the kernel needs; closed at the end.

    With `whole` its bytes are compared with the recorded sha256, even when the settings do not ask for it.
    Raises Refused, FormatError or OSError when a check fails.
    """
    descriptor = pyxis_importer.open_file(str(file))
    try:
        owners = (*settings.trusted_uids, 0, Path(settings.store).stat().st_uid)
        if not pyxis_importer.is_safe(os.fstat(descriptor), owners):
            raise Refused("others than the owner of the store can write it")
        pyxis_importer.check(descriptor, str(file), found)
        if whole or settings.verify or trust.of_node() is not None:
            pyxis_importer.compare(descriptor, str(file), found, settings)
        with SquashfsImage.open(Path(f"/proc/self/fd/{descriptor}")) as image:
            if set(image.owners) != {0}:
                raise Refused(
                    "its files belong to several users, and a kernel mount cannot show them as one's"
                )
        yield descriptor
    finally:
        os.close(descriptor)


def _release_of(settings: Settings, sha256: str) -> pyxis_importer.Found:
    """The release of the store that has these bytes and was compared with its image. Raises Refused."""
    if not pyxis_importer.is_digest(sha256):
        raise Refused(f"{sha256!r} is not a digest")
    why = Refused("no release of the store has this digest")
    for found, record in _releases(settings, sha256):
        try:
            _demand_trust(settings, found, record)
        except Refused as error:  # noqa: PERF203 - another release of these bytes may be in order
            why = error
        else:
            return found
    raise why


def _releases(settings: Settings, sha256: str) -> Iterator[tuple[pyxis_importer.Found, dict[str, object]]]:
    """The releases of any image that have these bytes, with their records."""
    for name in filter(pyxis_importer.is_name, pyxis_importer.list_folder(settings.store)):
        with contextlib.suppress(Refused):
            image = pyxis_importer.Image(f"{settings.store}/{name}", name)
            for _, _, version in image.versions_of(sha256):
                record = image.record(version)
                if record.get("sha256") == sha256 and image.state(version) not in _GONE:
                    yield pyxis_importer.Found(name, version, record), record


def _demand_trust(settings: Settings, found: pyxis_importer.Found, record: dict[str, object]) -> None:
    """Raise Refused for a release made elsewhere, not compared, or not signed where that is required."""
    checks = record.get("checks")
    if pyxis_importer.table(record, "scan").get("status") == "external":
        raise Refused(f"{found.image}:{found.version} was made elsewhere (external)")
    if not isinstance(checks, list) or _CHECKED not in checks:
        raise Refused(f"the files of {found.image}:{found.version} were never compared with its image")
    _demand_signature(settings, found)


def _demand_signature(settings: Settings, found: pyxis_importer.Found) -> None:
    """Raise Refused for a release that lacks a signature which this node requires.

    Otherwise the mark is left that the importer demands. The record is read again: it may have changed.
    """
    if trust.of_node() is None:
        return
    layout = Layout(Path(settings.store))
    try:
        record = trust.demand_of(layout, found.image, found.version, pyxis_importer.platform(), None)
    except SqshpipeError as error:
        raise Refused(error.headline) from error
    if record.sha256 != found.sha256:
        raise Refused(f"the record of {found.image}:{found.version} has changed")


def _may_read(file: Path, user: User) -> bool:
    """Whether this user can open the file, asked as that user: modes, ACLs and folders all count."""
    try:
        groups = os.getgrouplist(pwd.getpwuid(user.uid).pw_name, user.gid)
    except KeyError:
        groups = [user.gid]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.close(os.open(file, pyxis_importer.READ | os.O_NOFOLLOW))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
