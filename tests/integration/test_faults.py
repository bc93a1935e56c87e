"""Cells of docs/fault-matrix.md that no other test is: a stage, a fault, and how it ends.

The table of all cells is tests/support/fault_matrix.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.base import push_base
from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.verify import verify
from pipeline.docker.engine import Engine
from pipeline.errors import PublishError, RegistryError, SqshpipeError, ToolError, VerificationError
from pipeline.image.pin import pin
from pipeline.node import pyxis_importer
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.session import RetryPolicy
from pipeline.registry.source import RegistrySource
from pipeline.store import leases, prune
from pipeline.system import scratch
from tests.integration.test_crash import judge, prepared  # noqa: F401 - a fixture
from tests.integration.test_filesystems import mount, run  # noqa: F401 - a fixture
from tests.support.faults import crash, crash_actions
from tests.support.images.hostile_tars import member, record
from tests.support.images.layers import LayerBuilder, raw_header, write_layout
from tests.support.images.pushed import push_image
from tests.support.servers.registry import Fault, FaultyProxy
from tests.support.store import invariants
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, publish

_ROOT = Path(__file__).parents[2]
LINUX = Platform(os="linux", architecture="amd64")
Mount = Callable[..., Path]

# --- the registry, while a layer is fetched for a conversion


def _layers() -> list[bytes]:
    base = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    return [base.tar(), LayerBuilder().file("data", hashlib.sha256(b"x").digest() * 20_000).tar()]


REGISTRY_FAULTS: dict[str, tuple[list[Fault], str]] = {
    "slow": ([Fault(method="GET", path="/blobs/", times=3, delay=0.5)], ""),
    "cut": ([Fault(method="GET", path="/blobs/", times=3, cut_response=1000)], ""),
    "wrong bytes": (
        [Fault(method="GET", path="/blobs/", times=99, change=lambda body: bytes(len(body)))],
        "other bytes",
    ),
    "a flipped bit": (
        [Fault(method="GET", path="/blobs/", times=99, change=lambda body: body[:-9] + b"X" + body[-8:])],
        "other bytes",
    ),
    "too short": (
        [Fault(method="GET", path="/blobs/", times=99, status=200, body=b"short")],
        "ends it after|other bytes|broke off",
    ),
    "flapping": ([Fault(path="", times=1, status=503), Fault(path="/blobs/", times=2, status=502)], ""),
    "500 for long": ([Fault(method="GET", path="/blobs/", times=9999, status=500)], "status 500"),
}


@pytest.mark.needs("docker-registry", "mksquashfs")
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
@pytest.mark.parametrize("fault", REGISTRY_FAULTS)
def test_converting_from_a_registry(
    fault: str, converter: str, registry: PrivateRegistry, tmp_path: Path
) -> None:
    faults, words = REGISTRY_FAULTS[fault]
    credentials = Credentials(username=registry.username, password=registry.password)
    patience = RetryPolicy(attempts=4, first=0.01, longest=0.1)
    name = f"fault/{fault.replace(' ', '-')}-{converter}"
    with (
        FaultyProxy(registry.address) as proxy,
        RegistryClient(proxy.address, credentials=lambda _: credentials, patience=patience) as client,
    ):
        manifest = push_image(client, name, *_layers())
        source = RegistrySource(client, name, manifest)
        source.config()
        proxy.faults += faults

        def attempt() -> None:
            made = convert(
                source,
                ConvertOptions(converter=converter),  # type: ignore[arg-type]
                output=tmp_path / "x.sqsh",
                scratch=tmp_path / "scratch",
                cache=tmp_path / "cache",
            )
            assert verify(made).checks

        if words:
            with pytest.raises(SqshpipeError, match=words):
                attempt()
            assert not (tmp_path / "x.sqsh").exists()
            assert list((tmp_path / "scratch").iterdir()) == []
            proxy.faults.clear()
        attempt()  # the next run continues and ends well
        assert (tmp_path / "x.sqsh").exists()


# --- the engine


@pytest.mark.needs("dockerd", "docker-registry", "root")
@pytest.mark.timeout(240)
def test_the_engine_is_killed_in_the_middle_of_a_build_and_of_a_push(
    engine: PrivateEngine, registry: PrivateRegistry, tmp_path: Path
) -> None:
    """Three engines: one killed while it builds, one while it pushes, and the session's, which ends it."""
    from pipeline.config.types import ImageSpec
    from pipeline.image.build import BuiltImage, build, build_key
    from pipeline.image.push import adopt, push

    login = Credentials(username=registry.username, password=registry.password)
    own = PrivateEngine()
    own.start()
    credentials = lambda _host: login  # noqa: E731
    try:
        reference = Reference.parse(f"{registry.address}/killed/base:1")
        with Engine.connect(engine.host) as other:
            push_base(other, reference, login)
        client = RegistryClient(registry.address, credentials=credentials)
        file = tmp_path / "Dockerfile"
        endless = 'RUN ["/bin/sh", "-c", "while true; do :; done"]'
        file.write_text(f"ARG BASE_IMAGE\nFROM $BASE_IMAGE\n{endless}\n")
        spec = ImageSpec(name="killed", base=reference, platform=LINUX, dockerfile=file, context=tmp_path)
        base = pin(reference, LINUX, None, lambda _host: client)
        repository = Reference.parse(f"{registry.address}/killed/image")

        def built_by(host: str) -> BuiltImage:
            with Engine.connect(host) as connected:
                return build(
                    spec,
                    base,
                    key=build_key(spec, base),
                    version="v1",
                    revision=None,
                    engine=connected,
                    credentials=credentials,
                )

        def kill_after(seconds: float) -> threading.Timer:
            process = own._process
            assert process is not None
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            return timer

        timer = kill_after(3)
        with pytest.raises(ToolError) as caught:
            built_by(own.host)
        timer.join()
        assert "Docker Engine broke off" in caught.value.message
        own.stop()
        file.write_text("ARG BASE_IMAGE\nFROM $BASE_IMAGE\nCOPY Dockerfile /\n")
        own = PrivateEngine()
        own.start()
        built = built_by(own.host)
        with FaultyProxy(registry.address) as proxy, Engine.connect(own.host) as connected:
            through = Reference.parse(f"{proxy.address}/killed/image")
            proxy.faults.append(Fault(path="/blobs/uploads/", times=99, delay=3.0))
            timer = kill_after(1.5)
            with (
                RegistryClient(proxy.address, credentials=credentials) as slow,
                pytest.raises((ToolError, RegistryError)),
            ):
                push(built, through, connected, slow, credentials=credentials)
            timer.join()
        assert adopt(repository, build_key(spec, base), base, client) is None, "half an image has no tag"
        again = built_by(engine.host)
        with Engine.connect(engine.host) as connected:
            pushed = push(again, repository, connected, client, credentials=credentials)
        adopted = adopt(repository, build_key(spec, base), base, client)
        assert adopted is not None
        assert adopted.digest == pushed.digest
    finally:
        own.stop()


# --- the disk


def _cli(tmp_path: Path, *words: object, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": str(_ROOT),
    }
    argv = [*wrapper, sys.executable, "-m", "pipeline", *map(str, words)]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.needs("strace", "mksquashfs")
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
def test_converting_while_the_disk_fails(error: str, call: str, tmp_path: Path) -> None:
    """Calls on output and packs fail: a sentence, nothing is left, and the next run ends well."""
    write_layout(tmp_path / "image", _layers())
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    output = tmp_path / "out" / "x.sqsh"
    words = ("convert", f"oci:{tmp_path / 'image'}", "-o", output, "--converter", "native")
    # write itself is also how strace reports: the file's bytes go through the others
    calls = {
        "write": "pwrite64,pwritev,copy_file_range,fallocate,ftruncate",
        "fsync": "fsync",
        "rename": "rename,renameat,renameat2",
    }[call]
    wrapper = (
        *("strace", "-f", "--quiet=all", "-o", "/dev/null", "-e", f"trace={calls}"),
        *("-e", f"inject={calls}:error={error}:when=1+"),
    )
    process = _cli(tmp_path, *words, wrapper=wrapper)
    _, reported = process.communicate(timeout=100)
    assert process.returncode == ToolError.exit_code, reported
    assert "Traceback" not in reported
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    again = _cli(tmp_path, *words)
    _, reported = again.communicate(timeout=100)
    assert again.returncode == 0, reported


READ_BACK = {
    "sealed": ("convert", "fsync", 1, ToolError),
    "hashed": ("verify", "read", 1, VerificationError),
    "compared": ("verify", "pread64", 9, VerificationError),
}


@pytest.mark.needs("strace", "mksquashfs")
@pytest.mark.parametrize("moment", READ_BACK)
def test_the_disk_fails_while_the_finished_file_is_read_back(moment: str, tmp_path: Path) -> None:
    """EIO from one of the calls on: a sentence, nothing about a defect, and the next run ends well."""
    command, call, first, error = READ_BACK[moment]
    image, output = f"oci:{tmp_path / 'image'}", tmp_path / "x.sqsh"
    write_layout(tmp_path / "image", _layers())
    making = ("convert", image, "-o", output, "--converter", "mksquashfs", "--force")
    words = making if command == "convert" else ("verify", output, image)
    if command == "verify":
        _cli(tmp_path, *making).communicate(timeout=100)
    wrapper = (
        *("strace", "-f", "--quiet=all", "-o", "/dev/null", "-e", f"trace={call}"),
        *(() if call == "fsync" else ("-P", output)),  # it is sealed before it has its name
        *("-e", f"inject={call}:error=EIO:when={first}+"),
    )
    process = _cli(tmp_path, *words, wrapper=tuple(map(str, wrapper)))
    _, reported = process.communicate(timeout=100)
    assert process.returncode == error.exit_code, reported
    assert "Input/output error" in reported
    assert str(tmp_path) in reported
    assert "Traceback" not in reported
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list(tmp_path.glob("*.partial")) == []
    again = _cli(tmp_path, *words)
    _, reported = again.communicate(timeout=100)
    assert again.returncode == 0, reported


@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EDQUOT", "EIO", "ESTALE", "EROFS"])
@pytest.mark.parametrize("action", ["publish", "promote", "yank", "prune", "sync"])
def test_the_store_fails(
    action: str,
    error: str,
    prepared: Path,
    tmp_path: Path,
) -> None:
    """A call that changes the store fails with what quotas, disks and NFS answer: the next run repairs it."""
    from tests.integration.test_crash import final_state

    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared, undisturbed, symlinks=True)
    with contextlib.closing(crash.Nursery()) as nursery:
        found = crash.calls(nursery, action, undisturbed / "store", tmp_path / "log")
    crash_actions.ACTIONS[action](new_store(undisturbed / "store"))
    wanted = final_state(undisturbed / "store")
    changing = [
        (call, when, shown)
        for call, when, shown in found
        if call in ("write", "fsync", "link", "linkat", "rename", "symlink", "unlink")
    ]
    chance = len(f"{action}{error}")  # other calls for each cell
    with contextlib.closing(crash.Nursery()) as nursery:
        for call, when, shown in (changing[chance % len(changing)], changing[-1 - chance % 3]):
            place = tmp_path / f"{call}{when}"
            shutil.copytree(prepared, place, symlinks=True)
            problem = judge(nursery, place, crash.Point(call, when, error, shown), action, wanted)
            assert not problem, problem


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.ext4", "mount")
def test_the_store_goes_away_read_only_and_comes_back(mount: Mount) -> None:
    point = mount("ext4", 64)
    store = new_store(point / "containers")
    first, second = squashfs_like("first"), squashfs_like("second")
    publish(store, "v1.0", first)
    release = store.resolve("demo")
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    run("mount", "-o", "remount,ro", point)
    assert store.resolve("demo").version == "v1.0"
    assert pyxis_importer.get(settings, "docker://demo") == str(release.path)
    with pytest.raises(SqshpipeError, match=r"not allowed|read-only"):
        publish(store, "v1.1", second)
    run("mount", "-o", "remount,rw", point)
    publish(store, "v1.1", second)
    device = next(
        line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {point} " in line
    )
    backing = run_out("losetup", "-n", "-O", "BACK-FILE", device).strip()
    run("umount", point)
    with pytest.raises(PublishError, match="there is no store"):
        store.resolve("demo")
    with pytest.raises(pyxis_importer.Refused):
        pyxis_importer.get(settings, "docker://demo")
    run("mount", "-o", "loop", backing, point)
    assert store.resolve("demo").version == "v1.1"
    invariants.check(store, {"v1.0": first, "v1.1": second})


def run_out(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout


# --- the clock


@pytest.mark.parametrize("jump", [-3600, 3600], ids=["back", "forward"])
def test_the_clock_jumps_by_an_hour(jump: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is in use goes: scratch of a run at work, a lease, bytes that a channel names."""
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    publish(store, "v1.1")
    real = time.time
    with scratch.scratch_folder(tmp_path / "scratch") as working:
        leases.take(store.layout, store.resolve("demo:v1.0"), seconds=7200)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        with scratch.scratch_folder(tmp_path / "scratch"):
            assert working.exists()
        prune.prune(store.layout, crash_actions.ALL_OLD, prune.no_jobs)
        assert store.resolve("demo:v1.1").path.exists()
        assert store.layout.blob(hashlib.sha256(b"v1.0").hexdigest()).exists()
        publish(store, "v1.2")
        store.promote("demo:v1.2", "stable")
    monkeypatch.setattr(time, "time", real)
    publish(store, "v1.3")
    assert store.resolve("demo").version == "v1.3"
    assert store.resolve("demo:stable").version == "v1.2"
    invariants.check(store, {version: version.encode() for version in ("v1.0", "v1.1", "v1.2", "v1.3")})


# --- signals and memory


def _slow_tool(tmp_path: Path, ending: str) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "mksquashfs"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in -version) exec /usr/bin/mksquashfs -version;; esac\n'
        f"echo $$ > {tmp_path}/running\n{ending}\n"
    )
    tool.chmod(0o755)
    return tools


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_converting_interrupted_twice(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impatient person: the second time nobody waits for a tool that ignores it; nothing is left."""
    write_layout(tmp_path / "image", _layers())
    (tmp_path / "out").mkdir()
    tools = _slow_tool(tmp_path, "trap '' TERM INT; sleep 60 & wait; sleep 60")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    process = _cli(
        tmp_path,
        "convert",
        f"oci:{tmp_path / 'image'}",
        "-o",
        tmp_path / "out/x.sqsh",
        "--converter",
        "mksquashfs",
    )
    until = time.monotonic() + 60
    while not (tmp_path / "running").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    started = time.monotonic()
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 128 + number, reported
    assert time.monotonic() - started < 30
    assert "Traceback" not in reported
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "running").read_text()), 0)


@pytest.mark.needs("mksquashfs")
def test_the_kernel_kills_a_tool_that_takes_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(tmp_path / "image", _layers())
    (tmp_path / "out").mkdir()
    tools = _slow_tool(tmp_path, "kill -9 $$")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    words = (
        "convert",
        f"oci:{tmp_path / 'image'}",
        "-o",
        tmp_path / "out/x.sqsh",
        "--converter",
        "mksquashfs",
    )
    process = _cli(tmp_path, *words)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == ToolError.exit_code
    assert "memory" in reported
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def _memory_group() -> Path | None:
    """A cgroup in which memory can be limited, version 1 or 2; None where this machine lends none."""
    for parent, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(parent) / f"sqshpipe-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                (group / limit).write_text(str(100 << 20))
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
                return group
            group.rmdir()
    return None


@pytest.mark.needs("root")
def test_the_kernel_kills_a_conversion_that_takes_all_memory(tmp_path: Path) -> None:
    """In a cgroup with less memory than it needs; what it leaves is cleared up by the next run."""
    group = _memory_group()
    if group is None:
        pytest.skip("no cgroup with a memory controller may be made here")
    try:
        layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
        for number in range(130):  # 130 MB of attributes, which are kept in memory
            attribute = record(b"SCHILY.xattr.user.x", b"%d" % number + b"v" * 1_000_000)
            layer.raw(member(attribute)).raw(raw_header(b"f%d" % number, b"0"))
        write_layout(tmp_path / "image", [layer], compression="zstd")
        (tmp_path / "out").mkdir()
        words = (
            "convert",
            f"oci:{tmp_path / 'image'}",
            "-o",
            tmp_path / "out/x.sqsh",
            "--converter",
            "native",
        )
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        process = _cli(tmp_path, *words, wrapper=inside)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out/x.sqsh").exists()
        again = _cli(tmp_path, *words)
        _, reported = again.communicate(timeout=100)
        assert again.returncode == 0, reported
        kept = {path.suffix for path in (tmp_path / "cache" / "packs").iterdir()}
        assert kept <= {".pack", ".pair"}
    finally:
        group.rmdir()


# --- power

_PUBLISHER = """
import sys
from pathlib import Path
from pipeline.store.store import Store
from tests.support.store.crowd import content
from tests.support.store.releases import record_for
store = Store(Path(sys.argv[1]))
store.create()
number = 0
while True:
    number += 1
    version = f"v{number // 60}.{number % 60}"
    data = content(version)
    with store.staging() as staged:
        staged.write_bytes(data)
        store.publish(record_for(data, version), staged)
    if number % 2:
        store.promote(f"demo:{version}", "stable")
    print(version, flush=True)
"""


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.ext4", "mount")
@pytest.mark.timeout(300)
def test_power_is_lost_while_publishing(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk as it is at a random moment, mounted again: every release that was reported is complete.

    The publisher is stopped between two system calls for as long as the disk takes to copy, so that the copy
    is of one moment; what it had not asked to be on the disk by then is lost, as in a power cut.
    """
    from tests.support.store import crowd

    cuts = 60 if pytestconfig.getoption("--slow") else 6
    disk, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with disk.open("wb") as file:
        file.truncate(48 << 20)
    run("mkfs.ext4", "-q", disk)
    run("mount", "-o", "loop,commit=300", disk, point)
    copies: list[tuple[Path, list[str]]] = []
    reported: list[str] = []
    publisher = subprocess.Popen(
        [sys.executable, "-c", _PUBLISHER, str(point / "store")],
        cwd=_ROOT, env={**os.environ, "PYTHONPATH": str(_ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert publisher.stdout is not None
    lines = publisher.stdout
    reader = threading.Thread(target=lambda: reported.extend(line.strip() for line in lines), daemon=True)
    reader.start()
    try:
        for cut in range(cuts):
            before, until = len(reported), time.monotonic() + 5
            while (
                len(reported) == before and time.monotonic() < until
            ):  # one more at least, however busy it is
                time.sleep(0.01)
            time.sleep((cut * 37 % 11) / 60)
            publisher.send_signal(signal.SIGSTOP)
            _until_stopped(publisher.pid)
            copy = tmp_path / f"cut{cut}.img"
            shutil.copyfile(disk, copy)
            copies.append((copy, list(reported)))
            publisher.send_signal(signal.SIGCONT)
    finally:
        publisher.kill()
        publisher.wait()
        reader.join(10)
        lines.close()
        run("umount", point)
    for copy, acknowledged in copies:
        run("mount", "-o", "loop", copy, point)
        try:
            store = new_store(point / "store")
            contents = {version: crowd.content(version) for version in reported}
            if acknowledged:
                invariants.check(store, contents)
                for version in acknowledged:
                    assert store.resolve(f"demo:{version}").path.read_bytes() == contents[version]
            publish(store, "v99.0", created="2027-01-01T00:00:00Z")
            assert store.resolve("demo").version == "v99.0"
            invariants.check(store, contents)
        finally:
            run("umount", point)
        copy.unlink()
    with capsys.disabled():
        print(f"\n{cuts} power cuts, {len(reported)} releases published, none lost or partial")  # noqa: T201
    assert len(reported) > 3


def _until_stopped(pid: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.002)
    raise TimeoutError(pid)


# --- the cache of blobs


@pytest.mark.needs("docker-registry", "root")
def test_fetching_onto_a_full_disk(registry: PrivateRegistry, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small)
    try:
        credentials = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: credentials) as client:
            data = os.urandom(300_000)
            manifest = push_image(client, "fault/full", data)
            blob = Descriptor(media_type=OCI_LAYER, digest=Digest.of(data), size=len(data))
            assert manifest.layers[0].digest == blob.digest
            with pytest.raises(ToolError, match="no space"):
                client.fetch_blob("fault/full", blob, small / "blob")
            assert not (small / "blob").exists()
            run("mount", "-o", "remount,size=1m", small)
            assert client.fetch_blob("fault/full", blob, small / "blob").read_bytes() == data
    finally:
        run("umount", small)
