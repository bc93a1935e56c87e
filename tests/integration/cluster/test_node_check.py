"""An image compared with nodes of several kinds: processor, driver, EFA."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.node import check as node_check
from pipeline.node.check import Host, check, this_host
from tests.support.faults.people import as_user

pytestmark = pytest.mark.needs("mksquashfs")

X86, ARM = 62, 183
GPU_NODE = Host(machine="x86_64", driver="550.54.15", cuda="12.4", efa=False)
LIBRARIES = ("opt/amazon/efa/lib/libfabric.so.1", "opt/amazon/ofi-nccl/lib/libnccl-net.so")
Squash = Callable[..., Path]


@pytest.fixture
def squash(tmp_path: Path) -> Squash:
    def make(*, machine: int = X86, cuda: str = "", files: tuple[str, ...] = ()) -> Path:
        tree, made = tmp_path / "tree", tmp_path / "image.sqsh"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc" / "environment").write_text(f"A=1\nCUDA_VERSION={cuda}\n" if cuda else "A=1\n")
        for name in files:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).touch()
        if machine:
            (tree / "usr" / "bin").mkdir(parents=True, exist_ok=True)
            head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack("<HH", 2, machine)
            (tree / "usr" / "bin" / "dash").write_bytes(head.ljust(64, b"\0"))
            (tree / "usr" / "bin" / "sh").symlink_to("dash")
            (tree / "bin").symlink_to("usr/bin")
        subprocess.run(["mksquashfs", tree, made, "-quiet", "-no-progress"], check=True, timeout=60)
        return made

    return make


def verdicts(file: Path, host: Host = GPU_NODE, *, efa: bool | None = None) -> dict[str, str]:
    return {each.what: each.verdict for each in check(file, host, efa=efa)}


@pytest.mark.parametrize(
    ("cuda", "driver_runs", "verdict"),
    [
        ("", "12.4", "ok"),
        ("12.4.1", "12.4", "ok"),
        ("12.2.0", "12.4", "ok"),
        ("11.8.0", "12.4", "ok"),
        ("12.6.3", "12.4", "warn"),
        ("13.0.1", "12.4", "bad"),
        ("12.10.0", "12.9", "warn"),
        ("12.4.1", "", "warn"),
    ],
)
def test_cuda_against_the_driver(squash: Squash, cuda: str, driver_runs: str, verdict: str) -> None:
    host = Host(machine="x86_64", driver="x" if driver_runs else "", cuda=driver_runs, efa=False)
    assert verdicts(squash(cuda=cuda), host) == {"architecture": "ok", "cuda": verdict, "start": "ok"}


@pytest.mark.parametrize(("machine", "verdict"), [(X86, "ok"), (ARM, "bad"), (0, "unknown")])
def test_the_processor(squash: Squash, machine: int, verdict: str) -> None:
    found = verdicts(squash(machine=machine))
    assert found["architecture"] == verdict
    assert found["start"] == ("bad" if machine == 0 else "ok")


def test_efa_is_asked_about_where_the_node_has_it(squash: Squash) -> None:
    file = squash(files=LIBRARIES[:1])
    with_efa = Host(machine="x86_64", driver="", cuda="", efa=True)
    assert "libfabric" not in verdicts(file)
    assert "libfabric" not in verdicts(file, with_efa, efa=False)
    for found in (verdicts(file, with_efa), verdicts(file, efa=True)):
        assert (found["libfabric"], found["NCCL network plugin"]) == ("ok", "bad")


def test_both_libraries_of_efa_are_found(squash: Squash) -> None:
    found = {each.what: each for each in check(squash(files=LIBRARIES), GPU_NODE, efa=True)}
    assert found["libfabric"].text == "/opt/amazon/efa/lib/libfabric.so.1"
    assert found["NCCL network plugin"].verdict == "ok"


@pytest.mark.parametrize("gpu", [True, False])
def test_the_driver_is_the_one_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    header = "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{header}'\n" if gpu else "#!/bin/sh\necho no devices; exit 6\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    host = this_host()
    assert (host.driver, host.cuda) == (("550.54.15", "12.4") if gpu else ("", ""))


def test_a_folder_without_room_for_leases_is_reported(tmp_path: Path) -> None:
    """The importer starts the step without one: what then keeps the file is said."""
    for folder in (tmp_path / "none", Path("/proc")):
        found = node_check.leases(folder)
        assert (found.what, found.verdict) == ("leases", "warn")
        assert str(folder) in found.text
        assert "digest" in found.text
        assert "delete_after" in found.text
    assert node_check.leases(tmp_path).verdict == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("root")
def test_what_jobs_of_ordinary_users_can_do_counts() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)

        def verdict(wanted: str) -> str:
            return as_user(60021, lambda: check_is(folder, wanted), group=60021)

        folder.chmod(0o755)
        assert verdict("warn") == ""
        folder.chmod(0o1777)
        assert verdict("ok") == ""


def check_is(folder: Path, wanted: str) -> None:
    assert node_check.leases(folder).verdict == wanted


def test_what_is_no_squashfs_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "x.sqsh"
    file.write_bytes(b"nothing" * 100)
    with pytest.raises(FormatError):
        check(file, GPU_NODE)
