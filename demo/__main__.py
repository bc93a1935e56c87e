"""``make demo``: the whole path on this machine, and eight ranks that share one mount.

It starts a Docker Engine where none answers, a registry, and makes a small base image from this machine's
Python, so that it needs neither an account nor a download; only where docker-registry is not installed is the
registry a container, whose image the engine pulls. What it started is stopped at its end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo.base import FOREIGN_BASE, push_base
from demo.engine import PrivateEngine
from demo.ranks import Rank, bytes_delivered, check_namespaces, run_ranks
from demo.registry import CONTAINER_IMAGE, registry_for
from pipeline.cli import logs, output
from pipeline.docker.engine import Engine
from pipeline.errors import SqshpipeError, ToolError
from pipeline.oci.reference import Reference
from pipeline.system.mount import mounted
from pipeline.text import human_bytes

RANKS = 8
PROJECT = Path(__file__).resolve().parent.parent

_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
_IMAGES_YAML = """\
# Written by the demo, for the registry and the base of this run.
version: 1
registry: {{url: {registry}}}
store: {{root: {store}}}
defaults:
  scan: {{scanner: none}}
images:
  demo:
    base: {base}
    dockerfile: {dockerfile}
    scan: {{scanner: none}}
"""


class _Terminated(BaseException):
    """SIGTERM, raised so that everything is stopped on the way out."""


@dataclass(frozen=True, slots=True)
class Places:
    """What the demo writes: `work` is emptied at its start, `store` keeps what was published."""

    work: Path
    store: Path


def main(out: Path) -> int:
    """Run the demo, writing below `out`; the exit code is 0, or that of what failed."""
    output.configure(quiet=True, verbose=False, json_log=False)
    logs.begin()
    signal.signal(signal.SIGTERM, _on_sigterm)
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            published = _demo(stack, Places(work=out / "demo", store=out / "containers"))
    except SqshpipeError as error:
        output.failure(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: interrupted; all that it started is stopped", file=sys.stderr)
        return 130
    except _Terminated:
        print("\ndemo: terminated; all that it started is stopped", file=sys.stderr)
        return 143
    print(f"\nDone in {time.monotonic() - began:.0f} s; all that it started is stopped.")
    print(f"The image stays: {_short(published)}")
    print(f"Look into it:    .venv/bin/sqshpipe list --store {_short(out / 'containers')}")
    return 0


def _demo(stack: ExitStack, places: Places) -> Path:
    _title("sqshpipe: one image, one mount, every rank")
    _clean(places.work)
    engine = stack.enter_context(_engine())
    registry = stack.enter_context(registry_for(engine, places.work / "registry"))
    how = "asks for a password" if registry.credentials else f"a container of {CONTAINER_IMAGE}, no password"
    print(f"  registry  {registry.address}, on loopback, {how}")
    base = Reference.parse(f"{registry.address}/base/python:24.01-py3")
    push_base(engine, base, registry.credentials)
    origin = "this machine's Python" if sys.platform == "linux" else FOREIGN_BASE
    print(f"  base      {base}, {origin}")
    configuration = places.work / "images.yaml"
    configuration.write_text(
        _IMAGES_YAML.format(
            registry=registry.address,
            store=places.store,
            base=base,
            dockerfile=PROJECT / "demo/image/Dockerfile",
        ),
        encoding="utf-8",
    )
    sqshpipe = _Command(
        {
            **registry.variables,
            "DOCKER_HOST": engine.host,
            "SQSHPIPE_CONFIG": str(configuration),
            "SQSHPIPE_STORE": str(places.store),
            "SQSHPIPE_CACHE": str(places.work / "cache"),
            "SQSHPIPE_SCRATCH": str(places.work / "scratch"),
        }
    )
    _title("From a Dockerfile to a published .sqsh")
    sqshpipe("store", "create")
    sqshpipe("lock")
    version = _next_version(places.store)
    published = Path(sqshpipe("release", "demo", "--tag", version))
    _title("The same again does nothing")
    began = time.monotonic()
    sqshpipe("release", "demo", "--tag", version)
    print(f"  {time.monotonic() - began:.1f} s")
    _title(f"One mount, {RANKS} ranks")
    _show_ranks(published, places.work / "mnt")
    return published


@contextmanager
def _engine() -> Iterator[Engine]:
    """The engine that answers already, else a private one."""
    try:
        answering = Engine.connect()
    except ToolError:
        with PrivateEngine() as private, Engine.connect(private.host) as engine:
            print(f"  engine    Docker {engine.version}, private, since none answers")
            yield engine
    else:
        with answering as engine:
            print(f"  engine    Docker {engine.version} at {engine.host}")
            yield engine


class _Command:
    """The real command, shown as it is typed, and what it says as it comes, with long names cut short."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **variables, "PYTHONPATH": str(PROJECT)}

    def __call__(self, *words: str) -> str:
        """Run it to its end and give its stdout. Raises ToolError when it fails."""
        print(f"$ sqshpipe {shlex.join(words)}", flush=True)
        argv = [sys.executable, "-m", "pipeline", *words]
        process = subprocess.Popen(
            argv,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                print(_for_people(line.rstrip()), flush=True)
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # it removes its scratch on the way out
            process.communicate()
            raise
        for line in said.splitlines():
            print(_for_people(line))
        if process.returncode != 0:
            raise ToolError(f"sqshpipe {shlex.join(words)} ended with exit code {process.returncode}")
        return said.strip()


def _show_ranks(published: Path, folder: Path) -> None:
    folder.mkdir()
    with ExitStack() as stack:
        try:
            check_namespaces()
            place = stack.enter_context(mounted(published.resolve(), folder))
        except ToolError as error:
            print(
                f"  left out: {error.headline}.\n  The file itself is complete. For this part: {error.hint}."
            )
            return
        how = "the kernel" if place.kind == "kernel" else "squashfuse"
        print(f"  {_short(published)} mounted once, by {how}\n")
        before = bytes_delivered(place)
        ranks = run_ranks(place, RANKS)
        after = bytes_delivered(place)
    print("  rank      pid  device  mount       read  sha256 of /app/weights.bin")
    for rank in ranks:
        print(
            f"  {rank.rank:>4}  {rank.pid:>7}  {rank.device:>6}  {rank.mount_id:>5}  "
            f"{human_bytes(rank.size):>9}  {rank.sha256[:24]}"
        )
    _check_shared(ranks)
    print(f"\n  {RANKS} ranks read {human_bytes(sum(rank.size for rank in ranks))} through one mount", end="")
    if before is not None and after is not None:
        print(
            f";\n  {human_bytes(after - before)} came from the file, "
            "the rest from the page cache that they share",
            end="",
        )
    print(".")


def _check_shared(ranks: list[Rank]) -> None:
    """The proof: one device, one mount, the same bytes. Raises ToolError when it is not so."""
    for what, seen in (
        ("devices", {rank.device for rank in ranks}),
        ("mounts", {str(rank.mount_id) for rank in ranks}),
        ("contents", {rank.sha256 for rank in ranks}),
    ):
        if len(seen) != 1:
            raise ToolError(f"the ranks saw {len(seen)} {what}: {', '.join(sorted(seen))}")


def _next_version(store: Path) -> str:
    """v1.0, or the next one that no earlier demo has published: a version never changes."""
    number = 0
    while (store / "demo" / f"v1.{number}.json").exists():
        number += 1
    return f"v1.{number}"


def _clean(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def _short(path: Path) -> str:
    return _for_people(str(path))


def _for_people(text: str) -> str:
    """Paths as seen from the project and digests by their beginning, so that lines fit on a screen."""
    return _DIGEST.sub(r"\1…", text.replace(f"{PROJECT}/", ""))


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if sys.argv[1:] else PROJECT / "out"))
