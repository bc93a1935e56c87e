"""Does an image fit a node: architecture, CUDA against the driver, EFA and NCCL libraries in the image.

Everything about the image is read from the .sqsh itself, nothing is started.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ToolError
from pipeline.node import job_mount
from pipeline.node import software as node_software
from pipeline.oci import environment as image_environment
from pipeline.squashfs.inode import Inode, Kind
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system import process, untrusted
from pipeline.system.temporary import temporary_name

Verdict = Literal["ok", "warn", "bad", "unknown"]
_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le"}  # ELF e_machine
_PROBES = (
    b"bin/sh",
    b"usr/bin/sh",
    b"usr/bin/dash",
    b"usr/bin/bash",
    b"bin/bash",
    b"usr/bin/busybox",
    b"bin/busybox",
)
_LIBFABRIC = re.compile(rb"(^|/)libfabric\.so(\.|$)")
_NCCL_NET = re.compile(rb"(^|/)libnccl-net(-ofi)?\.so(\.|$)")
_ELF_HEAD = 20
_LONGEST = 8 << 20  # bytes of /etc/environment: as long as an image's config may be


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinding:
    """One question, its answer, and what it means for a job."""

    what: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the node brings. `cuda` is the newest CUDA that its driver runs (13.0), empty without a GPU."""

    machine: str
    cuda: str
    driver: str
    efa: bool


def this_host() -> Host:
    """Look at the node that we are on."""
    cuda = driver = ""
    try:
        printed = process.run(["nvidia-smi"], check=False, timeout=60).stdout
    except ToolError:
        printed = ""
    found = re.search(r"Driver Version: (\S+)\s+CUDA Version: (\S+)", printed)
    if found:
        driver, cuda = found.groups()
    return Host(machine=os.uname().machine, cuda=cuda, driver=driver, efa=_has_efa())


def check(file: Path, host: Host, *, efa: bool | None = None) -> list[NodeFinding]:
    """Compare an image with a node. `efa` None asks about EFA when the node has it.

    Raises FormatError when the file is not a sound squashfs.
    """
    with SquashfsImage.open(file) as image:
        environment = _environment(image)
        findings = [_architecture(image, host), _cuda(environment, host)]
        if host.efa if efa is None else efa:
            findings += _network(image)
        findings.append(_shell(image))
    return findings


def leases(folder: Path) -> NodeFinding:
    """Whether jobs can leave leases in `folder`, tried as this user with a file that is removed at once."""
    probe = folder / temporary_name()
    try:
        os.close(untrusted.create_exclusive(probe, mode=0o600))
        probe.unlink()
    except OSError as error:
        text = (
            f"{folder} takes none ({error.strerror}): prune knows only jobs whose comment names the digest "
            "(sqshpipe job), and leaves a hidden file for delete_after, 14 days unless images.yaml says more"
        )
        return NodeFinding(what="leases", verdict="warn", text=text)
    return NodeFinding(what="leases", verdict="ok", text=f"jobs can leave them in {folder}")


def software() -> list[NodeFinding]:
    """What serves the ranks' reads on this node, and which pyxis and enroot it has."""
    served = node_software.pyxis_server()
    if served is None:
        text = "no squashfuse in PATH, which enroot starts: steps unpack their image, or fail"
        findings = [NodeFinding(what="squashfs server", verdict="warn", text=text)]
    else:
        verdict: Verdict = "ok" if served.well else "warn"
        text = served.sentence if served.well else f"{served.sentence}; squashfuse 0.6 is 2.5 times as fast"
        findings = [NodeFinding(what="squashfs server", verdict=verdict, text=text)]
    for what, version, sentence in (
        ("pyxis", node_software.pyxis_version(), node_software.pyxis_sentence),
        ("enroot", node_software.enroot_version(), node_software.enroot_sentence),
    ):
        if version is None:
            findings.append(NodeFinding(what=what, verdict="unknown", text="not found on this node"))
            continue
        well, text = sentence(version)
        findings.append(NodeFinding(what=what, verdict="ok" if well else "warn", text=text))
    return findings


def kernel_mounts(settings: Path) -> list[NodeFinding]:
    """Whether jobs get kernel mounts here, and which mounted files have changed since they were mounted."""
    well, text = job_mount.report(settings)
    findings = [NodeFinding(what="kernel mounts", verdict="ok" if well else "warn", text=text)]
    damaged = job_mount.damaged()
    texts = [f"{path} is damaged: its bytes are not those of its digest" for path in damaged] + [
        f"{path} has changed since it was mounted: its jobs may read damaged data"
        for path in job_mount.changed()
        if path not in damaged
    ]
    findings += [NodeFinding(what="mounted file", verdict="bad", text=text) for text in texts]
    return findings


def _architecture(image: SquashfsImage, host: Host) -> NodeFinding:
    for path in _PROBES:
        machine = _machine_of(image, path)
        if machine:
            verdict: Verdict = "ok" if machine == host.machine else "bad"
            return NodeFinding(
                what="architecture", verdict=verdict, text=f"image {machine}, node {host.machine}"
            )
    return NodeFinding(what="architecture", verdict="unknown", text="no program in the image shows it")


def _cuda(environment: dict[str, str], host: Host) -> NodeFinding:
    wanted = environment.get("CUDA_VERSION", "")
    if not wanted:
        return NodeFinding(what="cuda", verdict="ok", text="the image names no CUDA version")
    if not host.cuda:
        return NodeFinding(
            what="cuda", verdict="warn", text=f"image CUDA {wanted}; this node shows no GPU driver"
        )
    text = f"image CUDA {wanted}, driver {host.driver} runs up to {host.cuda}"
    if _version(wanted)[:2] <= _version(host.cuda)[:2]:
        return NodeFinding(what="cuda", verdict="ok", text=text)
    if _version(wanted)[0] == _version(host.cuda)[0]:
        # docs.nvidia.com/deploy/cuda-compatibility: minor versions of one major run on its oldest driver
        return NodeFinding(
            what="cuda", verdict="warn", text=f"{text}: minor version compatibility, PTX may fail"
        )
    return NodeFinding(what="cuda", verdict="bad", text=f"{text}: needs a newer driver or the compat package")


def _network(image: SquashfsImage) -> list[NodeFinding]:
    """EFA works with what is in the image: without it NCCL falls back to TCP and says nothing."""
    names = [path for path, _ in image.walk()]
    found = []
    for what, pattern in (("libfabric", _LIBFABRIC), ("NCCL network plugin", _NCCL_NET)):
        path = next((each for each in names if pattern.search(each)), None)
        if path is None:
            found.append(NodeFinding(what=what, verdict="bad", text="not in the image: NCCL would use TCP"))
        else:
            found.append(NodeFinding(what=what, verdict="ok", text="/" + os.fsdecode(path)))
    return found


def _shell(image: SquashfsImage) -> NodeFinding:
    if _find(image, b"bin/sh") is None:
        return NodeFinding(
            what="start", verdict="bad", text="no /bin/sh, which enroot and pyxis start images with"
        )
    return NodeFinding(what="start", verdict="ok", text="/bin/sh is there")


def _environment(image: SquashfsImage) -> dict[str, str]:
    inode = _find(image, b"etc/environment")
    if inode is None or inode.kind is not Kind.FILE:
        return {}
    found = image_environment.read(image.read(inode, limit=_LONGEST), {})
    return {name.decode(): value.decode("utf-8", "replace") for name, value in found.items()}


def _machine_of(image: SquashfsImage, path: bytes) -> str:
    inode = _find(image, path)
    if inode is None or inode.kind != 1:
        return ""
    head = b""
    for piece in image.open_file(inode):
        head += piece
        if len(head) >= _ELF_HEAD:
            break
    if head[:4] != b"\x7fELF" or len(head) < _ELF_HEAD:
        return ""
    order = "<" if head[5] == 1 else ">"
    return _MACHINES.get(struct.unpack_from(order + "H", head, 18)[0], "another")


def _find(image: SquashfsImage, path: bytes) -> Inode | None:
    """What a path of the image leads to, through symlinks; None when there is nothing."""
    try:
        return image.resolve(path)
    except FileNotFoundError:
        return None


def _has_efa() -> bool:
    folder = Path("/sys/class/infiniband")
    return folder.is_dir() and any(
        each.name.startswith("efa") or "rdmap" in each.name for each in folder.iterdir()
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", text)) or (0,)
