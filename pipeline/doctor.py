"""Looks at the machine: what is there, what is missing, and what to do about it.

Each check is one line: ok, warn (works, but look at it) or fail (something that images.yaml needs is not
there). Nothing is changed, apart from a probe file in the store that is removed at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from pipeline.config.types import Config
from pipeline.errors import SqshpipeError
from pipeline.node import software
from pipeline.system import process
from pipeline.system.mountinfo import existing, mount_of
from pipeline.system.parallel_reads import each
from pipeline.text import human_bytes

Status = Literal["ok", "warn", "fail"]

_GB = 10**9
# An NGC image is about 10 GB of compressed layers, 25 GB unpacked, and as much again as a .sqsh.
_SCRATCH_GB = 60
_CACHE_GB = 30
_TIMEOUT = 20.0
_WATCHED = timedelta(days=30)  # nobody watches a published image any more: so long before, it is a warning
_NAMED = 3  # differences of repositories that the line names


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line: what was checked, what was found, and what to do if that is a problem."""

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(config: Config | None, problem: SqshpipeError | None = None) -> tuple[Check, ...]:
    """Look at everything; ``problem`` is why there is no ``config``. Slow checks run in parallel."""
    checks: list[Callable[[], Check]] = [_python, lambda: _configuration(config, problem)]
    checks += [lambda: _docker(config), lambda: _mksquashfs(config), lambda: _enroot(config)]
    checks += [_fuse, lambda: _optional("git", "default versions and provenance come from it")]
    checks += [lambda: _scanner(config), _slurm]
    if config is not None:
        checks += [
            lambda: _codec(config),
            lambda: _space("scratch", config.scratch, _SCRATCH_GB, "SQSHPIPE_SCRATCH", local=True),
            lambda: _space("cache", config.cache, _CACHE_GB, "SQSHPIPE_CACHE", local=False),
            lambda: _registry(config),
        ]
    if config is not None and config.registry.ecr is not None:
        checks += [lambda: _repositories(config), lambda: _watched(config)]
    found = tuple(each(lambda check: check(), checks, workers=len(checks)))
    return found if config is None else (*found, *_store(config))


def _python() -> Check:
    return Check(name="python", status="ok", found=f"{platform.python_version()} at {sys.executable}")


def _configuration(config: Config | None, problem: SqshpipeError | None) -> Check:
    if config is None:
        found, advice = (
            ("; ".join((problem.headline, *problem.details)), problem.hint)
            if problem
            else ("none", "write an images.yaml")
        )
        return Check(name="images.yaml", status="fail", found=found, advice=advice)
    count = len(config.images)
    return Check(name="images.yaml", status="ok", found=f"{config.path}, {count} image{'s' * (count != 1)}")


def _docker(config: Config | None) -> Check:
    needed = config is None or any(not spec.mirrored for spec in config.images.values())
    secrets = config is not None and any(spec.secrets for spec in config.images.values())
    try:
        from pipeline.docker.engine import Engine

        with Engine.connect() as engine:
            buildkit = engine.has_buildkit
            found = f"{engine.version} at {engine.host}, {'BuildKit' if buildkit else 'classic builder'}"
    except SqshpipeError as error:
        status: Status = "fail" if needed else "warn"
        return Check(name="docker", status=status, found=error.headline, advice=error.hint)
    if secrets and not buildkit:
        advice = "secrets: need BuildKit: install the docker-buildx plugin or a newer engine"
        return Check(name="docker", status="fail", found=found, advice=advice)
    return Check(name="docker", status="ok", found=found)


def _mksquashfs(config: Config | None) -> Check:
    from pipeline.convert.mksquashfs_program import Mksquashfs

    needed = config is not None and _pinned(config, "mksquashfs")
    try:
        found = Mksquashfs.find().version_text
    except SqshpipeError as error:
        status: Status = "fail" if needed else "warn"
        return Check(name="mksquashfs", status=status, found=error.headline, advice=error.hint)
    return Check(name="mksquashfs", status="ok", found=found)


def _enroot(config: Config | None) -> Check:
    from pipeline.convert.enroot_program import Enroot

    needed = config is not None and _pinned(config, "enroot")
    if not needed and not _there("enroot"):
        return Check(name="enroot", status="ok", found="not installed; converter auto does without it")
    try:
        found = Enroot.find().version_text
    except SqshpipeError as error:
        status: Status = "fail" if needed else "warn"
        return Check(name="enroot", status=status, found=error.headline, advice=error.hint)
    return Check(name="enroot", status="ok", found=found)


def _codec(config: Config) -> Check:
    """Whether the newest releases of the images here can be sources of layers for the next ones."""
    from pipeline.convert.convert import choose_converter
    from pipeline.convert.from_store import StoredLayers
    from pipeline.convert.packing import codec_of
    from pipeline.store.store import Store

    specs = [spec for spec in config.images.values() if choose_converter(spec.convert) == "native"]
    name, others, versions = "codec", dict[str, None](), dict[str, str]()
    try:
        stored = None if config.store.configured is None else StoredLayers(Store(config.store.root))
        for spec in specs:
            here = codec_of(spec.convert).versions()
            versions |= here
            other = "" if stored is None else stored.newest_other_codec(spec.name, here)
            others |= {other: None} if other else {}
    except (SqshpipeError, OSError) as error:
        advice = error.hint if isinstance(error, SqshpipeError) else ""
        return Check(name=name, status="warn", found=f"not known: {error}", advice=advice)
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        advice = "the next release packs all layers again: use one version of the library everywhere"
        return Check(name=name, status="warn", found=f"{', '.join([*others][:_NAMED])}{more}", advice=advice)
    found = ", ".join(f"{library} {version}" for library, version in versions.items())
    return Check(name=name, status="ok", found=found or "no image is converted by native here")


def _pinned(config: Config, converter: str) -> bool:
    return any(spec.convert.converter == converter for spec in config.images.values())


def _fuse() -> Check:
    served = software.run_server()
    if served is None:
        advice = "to mount without root: sudo apt-get install squashfuse fuse3"
        return Check(name="mount", status="warn", found="squashfuse is not installed", advice=advice)
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        advice = "ask for access to /dev/fuse, or mount as root"
        return Check(name="mount", status="warn", found="/dev/fuse cannot be opened", advice=advice)
    found, well = served.sentence, served.well
    under_pyxis = software.pyxis_server() if os.geteuid() == 0 and _there("enroot") else None
    if under_pyxis is not None:
        found = f"{found}; without sqshpipe's prolog ranks under pyxis get {under_pyxis.sentence}"
        well = under_pyxis.well
    if not well:
        advice = "squashfuse 0.6 is 2.5 times as fast: install it before this one in PATH"
        return Check(name="mount", status="warn", found=found, advice=advice)
    return Check(name="mount", status="ok", found=found)


def _scanner(config: Config | None) -> Check:
    wanted = {spec.scan.scanner for spec in config.images.values()} if config else set()
    if _there("trivy"):
        return Check(name="scanner", status="ok", found="trivy")
    if "trivy" in wanted:
        advice = "install trivy, or choose another scanner in images.yaml"
        return Check(name="scanner", status="fail", found="trivy is not installed", advice=advice)
    if config is not None and config.registry.ecr is not None:
        return Check(name="scanner", status="ok", found="ECR scans what is pushed")
    if wanted <= {"none"}:
        return Check(name="scanner", status="ok", found="none is asked for")
    advice = "install trivy, or say scan: {scanner: none} so that nobody takes the images for scanned"
    return Check(name="scanner", status="warn", found="none is here", advice=advice)


def _slurm() -> Check:
    if not _there("sbatch"):
        return Check(name="slurm", status="ok", found="not installed; --executor slurm needs it")
    said = process.run(["sbatch", "--version"], check=False, timeout=_TIMEOUT)
    return Check(name="slurm", status="ok", found=said.stdout.strip() or "sbatch")


def _optional(tool: str, use: str) -> Check:
    if _there(tool):
        return Check(name=tool, status="ok", found="installed")
    return Check(name=tool, status="warn", found="not installed", advice=f"{use}: install {tool}")


def _space(name: str, place: Path, wanted_gb: int, variable: str, *, local: bool) -> Check:
    there = existing(place)
    if not os.access(there, os.W_OK):
        advice = f"set {variable} to a folder that you may write"
        return Check(name=name, status="fail", found=f"{place} cannot be written", advice=advice)
    free = shutil.disk_usage(there).free
    mount = mount_of(there)
    found = f"{place}, {mount.type}, {human_bytes(free)} free"
    if local and mount.is_shared:
        advice = f"whiteouts and many small files do badly there: set {variable} to local disk"
        return Check(name=name, status="warn", found=found, advice=advice)
    if free < _GB:
        return Check(name=name, status="fail", found=found, advice=f"free space, or set {variable}")
    if free < wanted_gb * _GB:
        advice = f"an NGC image wants {wanted_gb} GB here: set {variable} to a larger disk"
        return Check(name=name, status="warn", found=found, advice=advice)
    return Check(name=name, status="ok", found=found)


def _registry(config: Config) -> Check:
    from pipeline.bases.clients import Clients

    if not config.registry.given:
        advice = "set registry: in images.yaml, or SQSHPIPE_REGISTRY"
        return Check(name="registry", status="warn", found="none is configured", advice=advice)
    try:
        with Clients(config) as clients:
            clients(config.registry.host).ping()
    except SqshpipeError as error:
        return Check(name="registry", status="fail", found=error.headline, advice=error.hint)
    return Check(name="registry", status="ok", found=f"{config.registry.base} answers and lets us in")


def _repositories(config: Config) -> Check:
    """Whether the repositories in ECR are as images.yaml wants them; a push makes missing ones."""
    from pipeline.aws.ecr import Ecr
    from pipeline.image import repository

    assert config.registry.ecr is not None  # noqa: S101 - asked for such a registry alone
    asked = Ecr(config.registry.ecr.account, config.registry.ecr.region)
    try:
        found = [
            one for one in repository.drift(asked, config.registry, config.images) if one.found != "missing"
        ]
    except SqshpipeError as error:
        return Check(name="repositories", status="warn", found=error.message, advice=error.hint)
    if found:
        said = "; ".join(f"{one.repository}: {one.setting} is {one.found}" for one in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        advice = "sqshpipe ecr apply --dry-run lists all of them, sqshpipe ecr apply changes them"
        return Check(name="repositories", status="warn", found=said + more, advice=advice)
    return Check(name="repositories", status="ok", found="as images.yaml wants them")


def _watched(config: Config) -> Check:
    """Until when somebody looks for new vulnerabilities in what is published."""
    from pipeline.scan import watch
    from pipeline.store.store import Store

    name = "watching"
    try:
        if config.store.configured is None:
            return Check(name=name, status="ok", found="no store, so nothing is published")
        found = watch.of_releases(watch.published(Store(config.store.root), config.images), strict=True)
    except (SqshpipeError, OSError) as error:
        advice = error.hint if isinstance(error, SqshpipeError) else ""
        return Check(name=name, status="warn", found=f"not known: {error}", advice=advice)
    if not found:
        return Check(name=name, status="ok", found="there is no day on which it ends")
    release, first = found[0]
    today = datetime.now(timezone.utc).date()
    said, advice = first.sentence(release.name, today).split(": ", 1)
    said += f", and {len(found) - 1} more later" if len(found) > 1 else ""
    soon = first.unwatched_from - today < _WATCHED
    return Check(name=name, status="warn" if soon else "ok", found=said, advice=advice)


def _store(config: Config) -> list[Check]:
    """One line for the store, and one for each thing that is not well with it, the worst last."""
    from pipeline.store.checkup import examine as look

    if config.store.configured is None:
        advice = "set store: in images.yaml, or SQSHPIPE_STORE"
        return [Check(name="store", status="warn", found="none is configured", advice=advice)]
    root = config.store.root
    try:
        findings = look(root, group=config.store.group, stripe=config.store.stripe)
    except (SqshpipeError, OSError) as error:
        return [Check(name="store", status="fail", found=str(error), advice="look at its permissions")]
    well = "; ".join(one.found for one in findings if one.level == "ok")
    checks = [Check(name="store", status="ok", found=well)] if well else []
    levels: tuple[Status, ...] = ("warn", "fail")
    for level in levels:
        wrong = [one for one in findings if one.level == level]
        checks += [Check(name="store", status=level, found=one.found, advice=one.advice) for one in wrong]
    return checks


def _there(tool: str) -> bool:
    try:
        process.which(tool, hint="")
    except SqshpipeError:
        return False
    return True
