"""BuildKit through the command line that offers it.

Only the ``docker`` command speaks BuildKit's session protocol (contexts, secrets, credentials), and not
every one does: ``docker buildx build`` where the plugin is installed; a command line before 23 by itself,
with ``DOCKER_BUILDKIT=1``; one from 23 on without the plugin refuses. A machine may have several, so each
``docker`` in PATH is looked at.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.docker.engine import BuildRequest, Engine
from pipeline.docker.errors import lost
from pipeline.docker.events import build_failure
from pipeline.errors import ConfigError, ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest, parse_manifest
from pipeline.progress import NO_TASK, Task
from pipeline.system import process
from pipeline.system.disk import write_text
from pipeline.system.log import log

_BUILDX = re.compile(r"docker/buildx\s+v?(\d+)\.(\d+)")
_OLDEST_BUILDX = (0, 10)  # the first that knows --provenance
_FIRST_REFUSING = 23  # the first docker command line that leaves BuildKit to the plugin
_PROBE_TIMEOUT = 30.0  # seconds
_LOOK = 300.0  # seconds between two looks at the engine while it builds
_MISSED = 2  # looks in a row that it may not miss: one may come at a bad moment
_METADATA = ".metadata.json"
_HISTORY = ("history", "inspect", "attachment")  # reads a manifest that no registry has yet
_KEPT_LINES = 2000
_NUMBERED = re.compile(r"#(\d+) (.*)")
_NOISE = ("sha256:", "extracting ", "resolve ", "DONE ", "...")
_STEP_FAILED = re.compile(r"#(\d+) ERROR")
# what a step says has a time before it; its name, and what the builder says of it, has none
_STEP_LINE = re.compile(r"#(\d+) (?:\d+\.\d+ |(?!sha256:|ERROR|CANCELED|\d))(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """A command line that builds with BuildKit: ``argv`` up to and including ``build``."""

    argv: tuple[str, ...]
    version: str
    has_buildx: bool


def find_frontend(engine: Engine) -> Frontend | None:
    """The command line to build with on this engine; None when only the classic builder is left."""
    if not engine.has_buildkit:
        return None
    programs = _docker_programs()
    return _with_buildx(programs) or _old_enough(programs, engine)


def require_zstd(frontend: Frontend | None, engine: Engine, image: str) -> None:
    """Raise ToolError where `image` cannot get zstd layers: before a build of minutes, not after it."""
    if not engine.containerd_store:
        raise ToolError(
            f"{image} has compression: zstd, but this Docker Engine ({engine.version}) always pushes gzip, "
            "since it has no containerd image store",
            hint='set "features": {"containerd-snapshotter": true} in its daemon.json and start it again '
            "(tried with Docker Engine 29; 20.10 has no such store), or remove compression",
        )
    if frontend is not None and frontend.has_buildx:
        known = process.run(_buildx(frontend, *_HISTORY, "--help"), check=False, timeout=_PROBE_TIMEOUT)
        if " ".join(_HISTORY) in known.stdout:
            return
    raise ToolError(
        f"{image} has compression: zstd, and no buildx here can show how layers are compressed "
        f"({' '.join(_HISTORY)})",
        hint="install a newer buildx (tried with 0.30), or remove compression",
    )


def build(
    frontend: Frontend,
    order: BuildRequest,
    engine: Engine,
    *,
    docker_config: Path,
    folder: Path,
    task: Task = NO_TASK,
) -> Digest | None:
    """Build an image and leave it in the engine under its tag.

    Returns the digest of its config, or None when buildx does not report it.

    `docker_config` is a folder with the credentials for the bases. `folder` is an empty folder for temporary
    files. Steps that the engine's cache has with gzip layers are run again where zstd is wanted. Raises
    ToolError with the last lines of the step that failed, also when the disk is full.
    """
    dockerfile = folder / order.path.name
    write_text(dockerfile, order.dockerfile)
    # The context is a copy without what is left out, so its .dockerignore must not be applied once more: this
    # file wins over it.
    write_text(folder / f"{order.path.name}.dockerignore", "# nothing\n")
    argv = [*frontend.argv, *_options(frontend, order, dockerfile), str(order.context)]
    printed: deque[str] = deque(maxlen=_KEPT_LINES)
    internal: set[str] = set()

    def listen(line: str) -> None:
        printed.append(line)
        if _worth_showing(line, internal):
            task.line(line)

    environment = _environment(engine, docker_config)
    with _watched(engine) as gone:
        try:
            done = process.run(argv, env=environment, on_line=listen, check=False, stop=gone)
        except ToolError as error:
            if not gone.is_set():
                raise
            raise lost(f"building {order.path} failed", silent=True) from error
    if done.returncode != 0:
        raise _failure(order, list(printed), engine)
    found = _metadata(dockerfile.with_name(_METADATA))
    others = 0 if order.zstd_over is None else _not_zstd(frontend, found, order.zstd_over, environment)
    if others and not order.no_cache:
        log.info("the engine's cache has steps with gzip layers, running all steps again", layers=others)
        again = replace(order, no_cache=True)
        return build(frontend, again, engine, docker_config=docker_config, folder=folder, task=task)
    if others:
        raise ToolError(
            f"building {order.path} gave {others} layers that are not zstd and not of its base",
            hint="the last stage has to build on the base of images.yaml; else remove compression",
        )
    # with the containerd image store only the metadata have it
    config = found.get("containerimage.config.digest")
    return Digest.parse(str(config)) if config else None


@contextmanager
def _watched(engine: Engine) -> Iterator[threading.Event]:
    """Gives an event that is set when the engine hangs.

    The output does not show it: a step may be silent for hours too.
    """
    gone, ended = threading.Event(), threading.Event()

    def watch() -> None:
        missed = 0
        while missed < _MISSED and not ended.wait(_LOOK):
            missed = 0 if engine.answers() else missed + 1
        if missed == _MISSED:
            gone.set()

    thread = threading.Thread(target=watch, daemon=True, name="engine")
    thread.start()
    try:
        yield gone
    finally:
        ended.set()


def secret_option(identifier: str, source: str) -> str:
    """The value of one ``--secret``, which is read as CSV; `source` is ``env=NAME`` or ``src=FILE``."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([f"id={identifier}", source])
    return line.getvalue()


def _options(frontend: Frontend, order: BuildRequest, dockerfile: Path) -> list[str]:
    options = ["--progress=plain", f"--file={dockerfile}", f"--tag={order.tag}"]
    if frontend.has_buildx:
        # without force-compression, which would compress the base's layers again
        zstd = "--output=type=image,compression=zstd,oci-mediatypes=true"
        options += ["--load" if order.zstd_over is None else zstd]
        # attestations would turn one image into an index of two manifests
        options += ["--provenance=false", "--sbom=false"]
        options += [f"--metadata-file={dockerfile.with_name(_METADATA)}"]
    if order.network is not None:
        options += [f"--network={order.network}"]
    if order.platform is not None:
        options += [f"--platform={order.platform}"]
    if order.target is not None:
        options += [f"--target={order.target}"]
    if order.no_cache:
        options += ["--no-cache"]
    options += [f"--build-arg={name}={value}" for name, value in sorted(order.build_args.items())]
    options += [f"--label={name}={value}" for name, value in sorted(order.labels.items())]
    options += [f"--secret={secret_option(name, source)}" for name, source in sorted(order.secrets.items())]
    return options


def _environment(engine: Engine, docker_config: Path) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DOCKER_CONTEXT", "BUILDX_BUILDER")
    }
    return {
        **environment,
        **engine.variables,
        "DOCKER_CONFIG": str(docker_config),
        "DOCKER_BUILDKIT": "1",
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        "DOCKER_CLI_HINTS": "false",
    }


def _metadata(path: Path) -> dict[str, Any]:
    """What buildx says about a build; nothing where the command line is not buildx."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ToolError(f"buildx leaves metadata that cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ToolError(f"buildx leaves metadata that cannot be read: {str(found)[:80]}")
    return found


def _not_zstd(
    frontend: Frontend, built: dict[str, Any], base: frozenset[Digest], environment: dict[str, str]
) -> int:
    """How many layers of what was `built` are neither zstd nor of the base; nothing is pushed yet."""
    build = str(built.get("buildx.build.ref")).rpartition("/")[2]
    argv = _buildx(frontend, *_HISTORY, build, str(built.get("containerimage.digest")))
    said = process.run(argv, env=environment, timeout=_PROBE_TIMEOUT).stdout
    manifest = parse_manifest(said.encode(), None)
    if not isinstance(manifest, Manifest):
        raise ToolError(f"buildx built an index, not one image: {manifest.digest}")
    return sum(layer.compression != "zstd" for layer in manifest.layers if layer.digest not in base)


def _buildx(frontend: Frontend, *words: str) -> list[str]:
    """A command of buildx for the builder that `frontend` builds with."""
    program, buildx, _, builder = frontend.argv
    return [program, buildx, builder, *words]


def _worth_showing(line: str, internal: set[str]) -> bool:
    """Whether a line is about the user's own steps; `internal` collects the numbers of BuildKit's."""
    match = _NUMBERED.match(line)
    if match is None:
        return bool(line.strip())
    number, text = match.groups()
    if text.startswith(("[internal]", "[auth]", "exporting ")):
        internal.add(number)
    return number not in internal and not text.startswith(_NOISE)


def _failure(order: BuildRequest, printed: list[str], engine: Engine) -> ToolError:
    """Steps run side by side: of the one that failed the lines are picked by its number.

    BuildKit's last line is the reason, unless the engine does not answer any more.
    """
    if not engine.answers():  # the command line says "unexpected EOF" at most
        return lost(f"building {order.path} failed")
    reason = re.sub(r"^(ERROR|error): ", "", printed[-1]) if printed else "the builder said nothing"
    failed = next((match[1] for line in reversed(printed) if (match := _STEP_FAILED.match(line))), None)
    step = [match[2] for line in printed if (match := _STEP_LINE.match(line)) and match[1] == failed]
    return build_failure(order.path, reason, step, root=engine.root)


def _docker_programs() -> list[str]:
    """Every ``docker`` in PATH, in PATH's order, each file once."""
    found: dict[Path, str] = {}
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = Path(folder or ".") / "docker"
        # in this order: access() answers for a folder of PATH that may not be entered, is_file() raises
        if os.access(program, os.X_OK) and program.is_file():
            found.setdefault(program.resolve(), str(program))
    return list(found.values())


def _with_buildx(programs: list[str]) -> Frontend | None:
    for program in programs:
        answer = process.run([program, "buildx", "version"], check=False, timeout=_PROBE_TIMEOUT)
        match = _BUILDX.search(answer.stdout) if answer.returncode == 0 else None
        if match is None:
            continue
        if (int(match[1]), int(match[2])) < _OLDEST_BUILDX:
            log.warning("this buildx is too old and is not used", program=program, version=match[0])
            continue
        # the builder named default is the engine itself, whatever `docker buildx use` has chosen
        argv = (program, "buildx", "build", "--builder=default")
        return Frontend(argv=argv, version=f"buildx {match[1]}.{match[2]}", has_buildx=True)
    return None


def _old_enough(programs: list[str], engine: Engine) -> Frontend | None:
    for program in programs:
        # the server's version makes it talk to the engine, which may be too new for so old a command line
        query = "{{.Client.Version}} {{.Server.Version}}"
        argv = [program, "--host", engine.host, "version", "--format", query]
        environment = {**os.environ, **engine.variables}
        answer = process.run(argv, env=environment, check=False, timeout=_PROBE_TIMEOUT)
        major = answer.stdout.split(".", 1)[0]
        if answer.returncode == 0 and major.isdigit() and int(major) < _FIRST_REFUSING:
            return Frontend(
                argv=(program, "build"), version=f"docker {answer.stdout.split()[0]}", has_buildx=False
            )
    return None


def secret_source(identifier: str, env: str | None, file: Path | None) -> str:
    """Where a secret comes from, in ``--secret``'s words. Raises ConfigError when nothing is there."""
    if env is not None:
        if not os.environ.get(env):
            raise ConfigError(
                f"secret {identifier}: the environment variable {env} is not set", hint=f"export {env}=…"
            )
        return f"env={env}"
    if file is None or not (os.access(file, os.R_OK) and file.is_file()):
        raise ConfigError(f"secret {identifier}: {file} is not a readable file")
    return f"src={file}"
