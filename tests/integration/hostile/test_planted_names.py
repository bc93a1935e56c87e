"""What another user planted in folders where both may write: nothing is written through it, nothing of it is
believed, and it ends no command. The kernel's protection of symlinks is off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap
from pipeline.convert.enroot_program import Places
from pipeline.errors import ToolError
from pipeline.node import prewarm_on_node, pyxis_importer, shared_mount
from pipeline.node.install import ImporterSettings, install
from pipeline.squashfs.cache import PackCache
from pipeline.system import untrusted
from tests.integration.cluster.test_bootstrap import SYSTEMS, make_root, run, values
from tests.support.faults.people import as_user
from tests.support.store.handmade_store import HandmadeStore, squashfs_like
from tests.support.store.releases import new_store, publish

pytestmark = pytest.mark.needs("root")

ATTACKER, SERVICE = 60011, 60012
DATA = squashfs_like("planted", 300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
COPY = f"{SHA256}.sqsh"
PROTECTION = Path("/proc/sys/fs/protected_symlinks")


@pytest.fixture(autouse=True)
def unprotected() -> Iterator[None]:
    before = PROTECTION.read_text()
    with contextlib.suppress(OSError):  # where it cannot be set, this host is stricter
        PROTECTION.write_text("0")
    yield
    if PROTECTION.read_text() != before:
        PROTECTION.write_text(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can walk through; pytest keeps its own for itself."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-planted-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        (Path(name) / "file.sqsh").write_bytes(DATA)
        (Path(name) / "victim").mkdir(mode=0o700)
        (Path(name) / "victim" / "kept").write_bytes(b"kept")
        yield Path(name)


def for_all(path: Path) -> Path:
    path.mkdir(parents=True)
    path.chmod(0o1777)
    return path


def untouched(place: Path) -> None:
    assert [(each.name, each.read_bytes()) for each in (place / "victim").iterdir()] == [("kept", b"kept")]


def plant(how: str, path: Path, victim: Path) -> None:
    """Done by the attacker."""
    if how == "link to a file":
        path.symlink_to(victim / "kept")
    elif how == "link to nothing":
        path.symlink_to(victim / "new")
    elif how == "link to a folder":
        path.symlink_to(victim)
    elif how == "file":
        path.write_bytes(DATA)
        path.chmod(0o666)
    elif how == "hidden file":
        path.touch(0)
    elif how == "pipe":
        os.mkfifo(path, 0o666)
    elif how == "folder":
        (path / "x").mkdir(parents=True)


WAYS = ["link to a file", "link to nothing", "link to a folder", "file", "hidden file", "pipe", "folder"]


def attack(path: Path, how: str, place: Path) -> None:
    assert as_user(ATTACKER, lambda: plant(how, path, place / "victim"), group=ATTACKER) == ""


@pytest.mark.parametrize("how", WAYS)
def test_a_copy_of_root_takes_its_name_from_whoever_planted_it(place: Path, how: str) -> None:
    local, state = for_all(place / "nvme"), place / "state"
    for_all(state / "verified")
    attack(local / COPY, how, place)
    warmed = prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, local, state=state)
    untouched(place)
    copy = local / COPY
    assert warmed.path == copy
    assert (copy.lstat().st_uid, copy.lstat().st_mode) == (0, 0o100444)
    assert copy.read_bytes() == DATA
    (mark,) = (state / "verified").iterdir()
    assert mark.name.startswith(SHA256)


@pytest.mark.parametrize("how", WAYS)
def test_a_service_user_warms_the_page_cache_where_another_holds_the_name(place: Path, how: str) -> None:
    local = for_all(place / "nvme")
    attack(local / COPY, how, place)
    os.chown(place / "victim", SERVICE, SERVICE)

    def warm() -> None:
        done = prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, local, state=place / "state")
        assert done.path == place / "file.sqsh"

    assert as_user(SERVICE, warm, group=SERVICE) == ""
    untouched(place)
    assert (local / COPY).lstat().st_uid == ATTACKER
    assert [each.name for each in local.iterdir()] == [COPY]


@pytest.mark.parametrize("user", [0, SERVICE])
def test_a_folder_behind_another_users_link_is_refused(place: Path, user: int) -> None:
    above = for_all(place / "scratch")
    attack(above / "nvme", "link to a folder", place)
    os.chown(place / "victim", user, user)

    def warm() -> None:
        prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, above / "nvme" / "deeper", state=None)

    reported = as_user(user, warm, group=user)
    assert reported.startswith("ToolError")
    assert f"symlink of user {ATTACKER}" in reported
    untouched(place)


def open_copy(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("how", [*WAYS, "mark"])
def test_a_planted_mark_is_neither_written_to_nor_believed(place: Path, how: str) -> None:
    state = place / "state"
    marks = for_all(state / "verified")
    copy = place / "copy.sqsh"
    copy.write_bytes(DATA)
    descriptor = open_copy(copy)
    mark = marks / pyxis_importer.mark_name(descriptor, SHA256)
    if how == "mark":
        assert as_user(ATTACKER, lambda: mark.write_text(mark.name), group=ATTACKER, umask=0o022) == ""
    else:
        attack(mark, how, place)
    try:
        assert not pyxis_importer.is_marked(descriptor, SHA256, str(state), (0,))
        assert pyxis_importer.verify(descriptor, SHA256, str(state))
        untouched(place)
        assert pyxis_importer.is_marked(descriptor, SHA256, str(state), (0,)) == (how != "folder")
    finally:
        os.close(descriptor)


def test_a_file_of_root_under_a_marks_name_is_no_mark(place: Path) -> None:
    """By a hard link, or moved there: root owns it, but root did not write it as a mark."""
    state = place / "state"
    marks = for_all(state / "verified")
    copy = place / "copy.sqsh"
    copy.write_bytes(DATA)
    (place / "roots").write_bytes(b"")
    descriptor = open_copy(copy)
    os.link(place / "roots", marks / pyxis_importer.mark_name(descriptor, SHA256))
    try:
        assert not pyxis_importer.is_marked(descriptor, SHA256, str(state), (0,))
    finally:
        os.close(descriptor)


def test_a_flipped_bit_of_the_stores_file_is_found_whatever_another_user_marked(place: Path) -> None:
    store = HandmadeStore(place / "store")
    path = store.release("demo", "v1.0", content=DATA)
    state = place / "state"
    marks = for_all(state / "verified")
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    descriptor = open_copy(path)
    mark = marks / pyxis_importer.mark_name(descriptor, SHA256)
    os.close(descriptor)
    assert as_user(ATTACKER, lambda: mark.write_text(mark.name), group=ATTACKER, umask=0o022) == ""
    values = {"schema": 1, "store": str(store.root), "state": str(state), "verify": True}
    with pytest.raises(pyxis_importer.Refused, match="changed its bytes"):
        pyxis_importer.get(pyxis_importer.Settings(values), "demo:v1.0")


def lease_of(store: HandmadeStore, monkeypatch: pytest.MonkeyPatch) -> tuple[pyxis_importer.Settings, Path]:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    stem = f"job-17.0-{pyxis_importer.node_name()}-{SERVICE}"
    return settings, store.root / "leases" / f"{stem}.json"


@pytest.mark.parametrize("how", WAYS)
def test_a_planted_lease_costs_no_job_its_lease(
    place: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HandmadeStore(place / "store")
    store.release("demo", "v1.0", content=DATA)
    settings, lease = lease_of(store, monkeypatch)
    attack(lease, how, place)
    os.chown(place / "victim", SERVICE, SERVICE)

    def step() -> None:
        pyxis_importer.get(settings, "demo:v1.0")
        own = [each for each in lease.parent.iterdir() if each.lstat().st_uid == SERVICE]
        assert [each.stat().st_mode & 0o777 for each in own] == [0o644], own
        pyxis_importer.release(settings)
        assert [each.lstat().st_uid for each in lease.parent.iterdir()] == [ATTACKER]

    assert as_user(SERVICE, step, group=SERVICE) == ""
    untouched(place)


@pytest.mark.parametrize("how", WAYS)
def test_a_planted_cache_of_imports_is_left_alone(place: Path, how: str) -> None:
    parent = for_all(place / "imported")
    attack(parent / str(SERVICE), how, place)
    os.chown(place / "victim", SERVICE, SERVICE)

    def make() -> None:
        made = Path(pyxis_importer.own_folder(str(parent), str(SERVICE)))
        assert made.name != str(SERVICE)
        assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (SERVICE, 0o700)
        assert pyxis_importer.own_folder(str(parent), str(SERVICE)) == str(made), "the next one shares it"

    assert as_user(SERVICE, make, group=SERVICE) == ""
    untouched(place)


@pytest.mark.parametrize("how", WAYS)
def test_a_planted_folder_for_mounts_is_left_alone(
    place: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SQSHPIPE_NODE_DIR", raising=False)
    usual = Path(f"/tmp/sqshpipe-{SERVICE}")
    assert not usual.exists()
    attack(usual, how, place)
    try:

        def make() -> None:
            made = shared_mount.node_folder()
            assert made != usual
            assert shared_mount.node_folder() == made
            made.rmdir()

        assert as_user(SERVICE, make, group=SERVICE) == ""
    finally:
        if usual.is_dir() and not usual.is_symlink():
            (usual / "x").rmdir()
            usual.rmdir()
        else:
            usual.unlink()
    untouched(place)


@pytest.mark.parametrize("how", [each for each in WAYS if each != "folder"])
def test_a_file_that_root_replaces_is_never_the_one_behind_a_planted_link(place: Path, how: str) -> None:
    shared = for_all(place / "shared")
    attack(shared / "report.html", how, place)
    untrusted.replace_file(shared / "report.html", b"new", mode=0o640)
    untouched(place)
    status = (shared / "report.html").lstat()
    assert (status.st_uid, status.st_mode) == (0, 0o100640)
    assert (shared / "report.html").read_bytes() == b"new"
    assert [each.name for each in shared.iterdir()] == ["report.html"]


def test_links_of_root_and_of_ones_own_are_followed(place: Path) -> None:
    real = place / "real"
    real.mkdir()
    (place / "link").symlink_to("real")
    (real / "own").symlink_to("target")
    untrusted.replace_file(place / "link" / "own", b"new")
    assert (real / "target").read_bytes() == b"new"
    assert (real / "own").is_symlink()
    shared = for_all(place / "shared")
    os.chown(place / "victim", ATTACKER, ATTACKER)

    def own() -> None:
        (shared / "mine").symlink_to(place / "victim")
        untrusted.replace_file(shared / "mine" / "x", b"new")

    assert as_user(ATTACKER, own, group=ATTACKER) == ""
    assert (place / "victim" / "x").read_bytes() == b"new"


@pytest.mark.parametrize("loop", ["a", "a/b"])
def test_a_loop_of_links_ends(place: Path, loop: str) -> None:
    (place / "a").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        untrusted.replace_file(place / loop, b"")


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_bit_flipped_in_a_copy_is_found_by_the_next_prewarm(place: Path, *, keep_time: bool) -> None:
    local, state = place / "nvme", place / "state"
    for_all(state / "verified")
    copy = prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, local, state=state).path
    before = copy.stat()
    with copy.open("r+b") as file:
        file.seek(200_000)
        file.write(bytes([DATA[200_000] ^ 1]))
    if keep_time:
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    descriptor = open_copy(copy)
    assert not pyxis_importer.is_marked(descriptor, SHA256, str(state), (0,))
    os.close(descriptor)
    warmed = prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, local, state=state)
    assert not warmed.there
    assert copy.read_bytes() == DATA
    descriptor = open_copy(copy)
    assert pyxis_importer.is_marked(descriptor, SHA256, str(state), (0,))
    os.close(descriptor)
    (place / "file.sqsh").write_bytes(DATA[:-1] + b"?")
    assert prewarm_on_node.onto_disk(place / "file.sqsh", SHA256, local, state=state).there


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["sqshpipe", "sqshpipe/restart-pending"])
def test_the_bootstrap_of_a_node_follows_nothing_planted(place: Path, name: str, how: str) -> None:
    script = place / "bootstrap.sh"
    script.write_text(bootstrap.script(values(place, store=str(HandmadeStore(place / "store").root))))
    root = make_root(place, SYSTEMS["ubuntu2204"])
    above = root / "var" / "lib"
    for each in (above / name).parent, above:
        each.mkdir(parents=True, exist_ok=True)
        each.chmod(0o1777)
    attack(above / name, how, place)
    done = run(script, "--dry-run", "--root", root)
    assert done.returncode == 0, done.stderr
    untouched(place)
    for each, mode in (("", 0o40755), ("verified", 0o41777), ("imported", 0o41777)):
        status = (above / "sqshpipe" / each).lstat()
        assert (status.st_uid, status.st_mode) == (0, mode), each


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["sqshpipe", "sqshpipe/enroot", "sqshpipe/enroot/tmp"])
def test_the_bootstrap_opens_no_folder_behind_a_planted_link(place: Path, name: str, how: str) -> None:
    """The folder of the node's own disk is often open to every user, and the bootstrap runs again."""
    functions = bootstrap.script(values(place)).rpartition('\nif [ "$CHECK" = 1 ] ||')[0]
    disk = for_all(place / "scratch") / "sqshpipe"
    planted = place / "scratch" / name
    if planted.parent != place / "scratch":
        for_all(planted.parent)
    (place / "victim").chmod(0o755)
    (place / "victim" / "enroot").mkdir()
    attack(planted, how, place)
    script = place / "do.sh"
    made = f"own_folder keep {disk}\nown_folder 1777 {disk}/enroot\nown_folder 1777 {disk}/enroot/tmp\n"
    script.write_text(f"{functions}\n{made}")
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert ((place / "victim" / "enroot").stat().st_mode & 0o7777) == 0o755
    assert list((place / "victim" / "enroot").iterdir()) == []
    for each, mode in ((disk / "enroot", 0o41777), (disk / "enroot" / "tmp", 0o41777)):
        assert (each.lstat().st_uid, each.lstat().st_mode) == (0, mode), each


@pytest.mark.parametrize("name", ["state", "state/verified", "state/imported", "state/prefetch"])
def test_the_importer_is_not_installed_on_another_users_folder(place: Path, name: str) -> None:
    """Who owns the folder above those of the users can put another one in the place of each."""
    folder = for_all(place / "scratch") / name
    if name != "state":
        for_all(folder.parent)
    assert as_user(ATTACKER, folder.mkdir, group=ATTACKER) == ""
    made = ImporterSettings(store=place / "store", state=place / "scratch" / "state")
    with pytest.raises(ToolError, match=f"it belongs to user {ATTACKER}"):
        install(made, place / "prefix")


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_root_mounts_nowhere_that_others_may_write(
    place: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "node").mkdir()
    (place / "node").chmod(mode)
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(place / "node"))
    with pytest.raises(ToolError, match="others may write"):
        shared_mount.node_folder()


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o777), (0, 0o775), (ATTACKER, 0o755), (ATTACKER, 0o1777)])
def test_a_copy_of_root_in_a_folder_where_others_replace_it_is_not_used(
    place: Path, owner: int, mode: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between the importer's look at it and the start of the step it could become another file."""
    store = HandmadeStore(place / "store")
    path = store.release("demo", "v1.0", content=DATA)
    local = for_all(place / "nvme")
    copy = prewarm_on_node.onto_disk(path, SHA256, local, state=None).path
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root), "local": str(local)})
    assert pyxis_importer.get(settings, "demo:v1.0") == str(copy), "root's, in a sticky folder of root"
    os.chown(local, owner, owner)
    local.chmod(mode)
    assert pyxis_importer.get(settings, "demo:v1.0") == str(path)
    assert "others may put another file in its place" in capfd.readouterr().err


@pytest.mark.parametrize("user", [0, SERVICE])
def test_packs_behind_another_users_link_are_refused(place: Path, user: int) -> None:
    cache = for_all(place / "cache")
    attack(cache / "packs", "link to a folder", place)
    os.chown(place / "victim", user, user)
    reported = as_user(user, PackCache(cache / "packs").refuse_others, group=user)
    assert "everybody can put layer packs" in reported
    untouched(place)


@pytest.mark.parametrize("how", [each for each in WAYS if "folder" not in each])
def test_a_download_is_not_written_to_a_planted_partial_file(place: Path, how: str) -> None:
    """A plain file that was planted is hashed, like what an earlier run left."""
    cache = for_all(place / "cache")
    name = cache / "blob.partial"
    attack(name, how, place)
    with contextlib.suppress(OSError), os.fdopen(open_partial(name), "a+b") as file:
        file.write(b"new")
    untouched(place)


def open_partial(path: Path) -> int:
    return untrusted.open_regular(path, flags=os.O_RDWR | os.O_CREAT | os.O_APPEND)


WRITERS = {
    "hooks": ["node", "hooks", "-o"],
    "job": ["job", "script", "demo:v1.0", "--store", "{store}", "-o"],
}


@pytest.mark.parametrize("how", [each for each in WAYS if each != "folder"])
@pytest.mark.parametrize("verb", WRITERS)
def test_what_root_renders_into_a_folder_for_all(place: Path, verb: str, how: str) -> None:
    store = new_store(place / "store")
    publish(store, "v1.0", DATA)
    shared = for_all(place / "shared")
    name = "prolog" if verb == "hooks" else "job.sbatch"
    attack(shared / name, how, place)
    words = [each.format(store=store.root) for each in WRITERS[verb]]
    words.append(str(shared if verb == "hooks" else shared / name))
    words += ["--", "true"] if verb == "job" else []
    argv = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    untouched(place)
    assert ((shared / name).lstat().st_uid, (shared / name).lstat().st_mode) == (0, 0o100755)


@pytest.mark.parametrize("user", [0, SERVICE])
def test_enroots_cache_behind_another_users_link_is_refused(place: Path, user: int) -> None:
    cache, scratch = for_all(place / "cache"), place / "scratch"
    scratch.mkdir()
    for each in (scratch, place / "victim"):
        os.chown(each, user, user)
    attack(cache / "enroot", "link to a folder", place)
    reported = as_user(user, lambda: Places.below(scratch, cache=cache / "enroot"), group=user)
    assert reported.startswith("ToolError")
    assert f"symlink of user {ATTACKER}" in reported
    untouched(place)
