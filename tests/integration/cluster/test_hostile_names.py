"""An image whose names are traps, run as root and as a user: the host is not read, written or waited for.

Each case is a real .sqsh that is really mounted. `HOST` stands for a folder of the host, which lies in /tmp:
so its path exists inside as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.node import enter, page_cache, run, shared_mount
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system import mount as mounts
from pipeline.system import mount_api
from tests.support.faults import people
from tests.support.images import small_root

pytestmark = pytest.mark.needs("root", "mksquashfs")
USER = 61_234
SECRET = "T_SECRET=a secret word"
SAY = ("/bin/sh", "-c", 'echo "ran in $PWD, $T_SECRET."')
RAN = "ran in /work, ."


Change = Callable[[Path, str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`change(tree, host)` makes the image; `code` and `said` are what must come of it."""

    name: str
    change: Change = lambda _tree, _host: None
    pseudo: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    command: tuple[str, ...] = SAY
    code: int = 0
    said: str = RAN


def _link(name: str, target: str) -> Change:
    """Replace a name of the image by a symlink."""

    def change(tree: Path, host: str) -> None:
        _away(tree / name)
        (tree / name).symlink_to(target.replace("HOST", host))

    return change


def _made(name: str, how: str) -> Change:
    def change(tree: Path, _host: str) -> None:
        path = tree / name
        _away(path)
        if how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            (path / "deep").mkdir(parents=True)
        elif how == "file":
            path.write_text("")
        elif how == "loop":
            path.symlink_to(path.name)
        elif how == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 24)

    return change


def _each_of_the_host(change: Callable[[str, str], Change], how: str) -> Change:
    def change_all(tree: Path, host: str) -> None:
        for name in ("dev", "proc", "sys", "tmp"):
            change(name, how)(tree, host)

    return change_all


def _away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _names() -> Iterator[Case]:
    ran_at_root = "ran in /, ."
    yield Case(name="nothing odd")
    for target in ("HOST/secret", "/../..HOST/secret", "../../../..HOST/secret", "HOST/new"):
        yield Case(name=f"our old name -> {target}", change=_link(".sqshpipe.rc.local", target))
        yield Case(name=f"rc.local -> {target}", change=_link("etc/rc.local", target))
        yield Case(name=f"rc -> {target}", change=_link("etc/rc", target), said=ran_at_root)
        yield Case(name=f"resolv.conf -> {target}", change=_link("etc/resolv.conf", target))
        yield Case(name=f"environment -> {target}", change=_link("etc/environment", target))
    for target in (
        "/proc/self/environ",
        "/proc/1/root" + "HOST/secret",
        "/proc/self/cwd/secret",
        "/dev/stdin",
    ):
        yield Case(name=f"environment -> {target}", change=_link("etc/environment", target))
    for target in ("HOST", "HOST/new", "../../..HOST", "/proc/1/root", "/tmp"):
        yield Case(name=f"etc -> {target}", change=_link("etc", target), said=ran_at_root)
    for how in ("pipe", "folder", "loop", "file", "huge"):
        yield Case(name=f"our old name: {how}", change=_made(".sqshpipe.rc.local", how))
        yield Case(name=f"rc.local: {how}", change=_made("etc/rc.local", how))
        yield Case(name=f"resolv.conf: {how}", change=_made("etc/resolv.conf", how))
        yield Case(name=f"environment: {how}", change=_made("etc/environment", how))
        yield Case(name=f"the driver's folder: {how}", change=_made("sqshpipe-driver", how))
        if how != "file":
            yield Case(name=f"rc: {how}", change=_made("etc/rc", how), code=6, said="/etc/rc of the image")
        yield Case(
            name=f"dev, proc, sys, tmp: {how}",
            change=_each_of_the_host(_made, how),
        )
    yield Case(name="etc: pipe", change=_made("etc", "pipe"), said=ran_at_root)
    yield Case(
        name="etc: loop", change=_made("etc", "loop"), code=6, said="Too many levels of symbolic links"
    )
    yield Case(name="etc: file", change=_made("etc", "file"), said=ran_at_root)
    yield Case(name="dev, proc, sys, tmp -> HOST", change=_each_of_the_host(_link, "HOST"))
    devices = {"endless": "c 666 0 0 1 5", "kmsg": "c 666 0 0 1 11", "disk": "b 666 0 0 7 0"}
    for kind, device in devices.items():
        for name in ("etc/environment", "etc/rc.local", ".sqshpipe.rc.local"):
            gone = _made(name, "gone")
            yield Case(name=f"{name}: {kind}", change=gone, pseudo=(f"{name} {device}",))


def _targets() -> Iterator[Case]:
    seen = ("/bin/sh", "-c", 'read line < $0/given; echo "$line"')
    for name, target, inside in (
        ("plain", "", "/data"),
        ("an absolute link", "/work", "/data"),
        ("a relative link", "../../work", "/data"),
        ("a dangling link within the image", "/elsewhere/deep", "/data"),
        ("a link and ..", "/bin/../work", "/data"),
        ("a link to a folder of the host", "HOST/folder", "/data"),
        ("below a link", "/work", "/data/../work"),
        ("below new folders", "", "/new/a/b"),
    ):
        change = _link("data", target) if target else _made("nothing", "gone")
        mount, command = f"GIVEN:{inside}", (*seen, inside)
        yield Case(name=f"mount on {name}", change=change, mount=(mount,), command=command, said="given")
    for name, target, said in (
        ("what the host lacks", "HOST/new", "nothing is created in folders of the host"),
        (
            "what the host lacks, far up",
            "../../../..HOST/new/deep",
            "nothing is created in folders of the host",
        ),
        ("what the image lacks", "/work/new", "the image is read-only"),
        ("a loop", "data", "Too many levels"),
        ("the root", "/", "the root of the image"),
        ("the root, far up", "../../..", "the root of the image"),
        ("a file", "/bin/sh", "that is a file in the image"),
        ("below a file", "/bin/sh/x", "Not a directory"),
        ("a file of the host", "HOST/secret", "that is a file"),
    ):
        yield Case(
            name=f"mount on {name}", change=_link("data", target), mount=("GIVEN:/data",), code=2, said=said
        )
    yield Case(name="a file on a folder", mount=("GIVEN/given:/work",), code=2, said="that is a folder")
    yield Case(name="a file on a pipe", change=_made("work/x", "pipe"), mount=("GIVEN/given:/work/x",))
    yield Case(name="nothing", mount=("GIVEN/nothing:/x",), code=2, said="does not exist on this host")


CASES = [*_names(), *_targets()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A folder of the host that no image may touch, and places that the user may write."""

    folder: Path
    given: Path
    node: Path

    def seen(self) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in [self.folder, *self.folder.rglob("*")]:
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)
        return found


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="sqshpipe-host-", dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        made = Host(folder=top / "host", given=top / "given", node=top / "node")
        for each in (made.folder, made.folder / "folder", made.given):
            each.mkdir()
        (made.folder / "secret").write_text(f"{SECRET}\n")
        (made.given / "given").write_text("given\n")
        for path in (made.folder, *made.folder.rglob("*")):
            os.chown(path, USER, USER)  # the user could write it, and so could root
        monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(made.node))
        for job in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
            monkeypatch.delenv(job, raising=False)
        yield made
        lines = Path("/proc/self/mounts").read_text().splitlines()
        left = [line.split()[1] for line in lines if str(top) in line]
        for mounted in left:
            subprocess.run(["umount", "-l", mounted], check=False, timeout=30)
        assert not left


def _run(uid: int, image: Path, host: Host, case: Case) -> tuple[int, str, str]:
    """Run the case's command as a user: its exit code, and what it wrote.

    Root mounts the image, with the kernel: whether a user may open /dev/fuse is up to the machine.
    """
    shutil.rmtree(host.node, ignore_errors=True)
    for folder in (host.node, host.node / "root", host.node.parent / "mounted"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, uid, uid)
    mounted, answer = host.node.parent / "mounted", host.node / "answer"
    entering = enter.Entering(
        image=str(mounted),
        scratch=str(host.node / "root"),
        command=case.command,
        binds=tuple(enter.Bind.parse(each.replace("GIVEN", str(host.given))) for each in case.mount),
    )

    def action() -> None:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is the user's, as after an exec
            for number in (1, 2):
                os.dup2(os.open(f"{answer}.{number}", os.O_WRONLY | os.O_CREAT), number)
            sys.stderr = os.fdopen(2, "w")
            code = enter.attempt(entering)
            sys.stderr.flush()
            os._exit(code)
        answer.write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))

    with mounts.mounted(image, mounted, kind="kernel"):
        assert people.as_user(uid, action, group=uid) == ""
    return int(answer.read_text()), *(Path(f"{answer}.{number}").read_text() for number in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_nothing_of_the_host_is_read_written_or_waited_for(case: Case, host: Host, tmp_path: Path) -> None:
    made = small_root.image(tmp_path, lambda tree: case.change(tree, str(host.folder)), *case.pseudo)
    image = Path(shutil.move(made, host.given.parent / "image.sqsh"))
    before = host.seen()
    for uid in (0, USER):
        code, said, errors = _run(uid, image, host, case)
        assert host.seen() == before
        assert code == case.code, errors
        assert case.said in (errors if code else said)
        assert SECRET.partition("=")[2] not in said + errors
        assert "unexpected" not in errors
        assert "Traceback" not in errors
        assert code == 0 or errors.startswith("sqshpipe: "), "it says why it ended"


@pytest.mark.parametrize("how", ["pipe", "folder", "loop", "device"])
def test_a_sqsh_that_is_no_regular_file_is_not_waited_for(how: str, tmp_path: Path) -> None:
    path = tmp_path / "image.sqsh"
    if how == "device":
        path.symlink_to("/dev/zero")
    else:
        _made("image.sqsh", how)(tmp_path, "")
    with pytest.raises(ConfigError, match="cannot read"):
        run.image_file(path)
    with pytest.raises(FormatError, match="cannot open"):
        SquashfsImage.open(path)
    if path.exists():
        with pytest.raises(OSError, match="regular"):
            page_cache.forget(path)


@pytest.mark.needs("unsquashfs")
def test_a_benchmark_reads_no_trap(host: Host, tmp_path: Path) -> None:
    def change(tree: Path) -> None:
        os.mkfifo(tree / "work" / "pipe.py")
        (tree / "work" / "link.py").symlink_to(host.folder / "pipe")
        (tree / "work" / "folder.so").mkdir()
        (tree / "work" / "module.py").write_text("pass\n")

    os.mkfifo(host.folder / "pipe")
    made = small_root.image(tmp_path, change, "work/zero.so c 666 0 0 1 5")
    words = ["node", "bench", str(made), "--scratch", str(tmp_path), "--ranks", "1"]
    command = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ways = [line.split("  ")[0] for line in done.stdout.splitlines() if "0." in line]
    assert {"unpacked", "kernel mount"} <= set(ways), done.stdout
    assert not list(tmp_path.glob("sqshpipe-bench-*"))


@pytest.mark.parametrize("how", ["everybody may write", "another user's symlink", "a file"])
def test_a_node_folder_in_which_others_could_plant_names_is_refused(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "node"
    if how == "everybody may write":
        node.mkdir()
        node.chmod(0o777)
    elif how == "another user's symlink":
        node.symlink_to(tmp_path)
        os.lchown(node, 65534, 65534)
    else:
        node.touch()
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(node))
    with pytest.raises(ToolError, match=str(node)):
        shared_mount.node_folder()


def test_a_mount_is_never_seen_writable_unless_it_is_asked_for(host: Host, tmp_path: Path) -> None:
    made = small_root.image(tmp_path, lambda _tree: None)
    write = ("/bin/sh", "-c", "echo changed > /data/given")
    code, _, _ = _run(0, made, host, Case(name="", mount=("GIVEN:/data",), command=write))
    assert code != 0
    assert (host.given / "given").read_text() == "given\n"
    code, _, errors = _run(0, made, host, Case(name="", mount=("GIVEN:/data:rw",), command=write))
    assert code == 0, errors
    assert (host.given / "given").read_text() == "changed\n"


@pytest.mark.parametrize("way", ["at once", "one by one"])
@pytest.mark.parametrize("user", [0, USER])
def test_mounts_below_a_mount_are_read_only_with_it(
    user: int, way: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "one by one":
        monkeypatch.setattr(mount_api, "set_attributes", lambda *_words, **_more: errno.ENOSYS)
    made = small_root.image(tmp_path, lambda _tree: None)
    places = [host.given / name for name in ("one", "one/two words", "one/two words/b\\040c", "file")]
    mounted: list[Path] = []
    try:
        for place in places[:-1]:
            place.mkdir()
            _mounted("tmpfs", place, "tmpfs", mounted)
            place.chmod(0o777)
        places[-1].touch()
        (host.folder / "other").write_text("as it was")
        (host.folder / "other").chmod(0o666)
        _mounted(str(host.folder / "other"), places[-1], "bind", mounted)
        targets = " ".join(f"'/data/{place.relative_to(host.given)}'" for place in places)
        write = (
            f'for at in {targets}; do [ -d "$at" ] && at="$at/new"; echo x > "$at" && echo wrote; done; true'
        )
        for flags, wrote in (("", 0), (":rw", len(places))):
            case = Case(name="", mount=(f"GIVEN:/data{flags}",), command=("/bin/sh", "-c", write))
            code, said, errors = _run(user, made, host, case)
            assert code == 0, errors
            assert (said.count("wrote"), errors.count("Read-only")) == (wrote, len(places) - wrote), errors
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", place], check=True)


def _mounted(source: str, place: Path, kind: str, mounted: list[Path]) -> None:
    how = ["--bind", source] if kind == "bind" else ["-t", kind, source]
    subprocess.run(["mount", *how, place], check=True)
    mounted.append(place)
