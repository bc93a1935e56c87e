"""``sqshpipe refresh`` of 50 images when nothing changed: seconds, and what of them is starting Python.

    python -m bench.refresh [--images 50] [--delay 100] [--rounds 7] [--json FILE]

A registry with passwords on loopback, a base of its own for each image, each with a `track:`, so that both
its digest and its tags are asked for. Once directly, and once from ``--delay`` milliseconds away.
The command is the one that a timer runs, a process of its own; `sqshpipe config schema` is the same start
without a question to anybody. The goal is two seconds; on a machine that others use look at the CPU seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.registry import PrivateRegistry
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import credentials_provider

GOAL = 2.0


def push_bases(registry: PrivateRegistry, count: int) -> None:
    """``count`` repositories with one tag each: manifests without layers are enough for a refresh."""
    rootfs = {"type": "layers", "diff_ids": []}
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs}).encode()
    blob = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(config), size=len(config))
    entry = {"mediaType": OCI_CONFIG, "digest": str(blob.digest), "size": blob.size}
    with RegistryClient(registry.address, credentials=credentials_provider(registry.address)) as client:
        for number in range(count):
            manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": []}
            raw = json.dumps({**manifest, "annotations": {"number": str(number)}}).encode()
            client.push_blob(f"base{number}", blob, io.BytesIO(config))
            client.put_manifest(f"base{number}", "24.01-py3", raw, OCI_MANIFEST)


def write_images(folder: Path, address: str, count: int) -> Path:
    path = folder / "images.yaml"
    lines = [f"  image{n}: {{base: '{address}/base{n}:24.01-py3'}}" for n in range(count)]
    head = "version: 1\ndefaults: {track: {pattern: YY.MM-py3, policy: newest}}\nimages:\n"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def from_afar(address: str, seconds: float) -> Iterator[str]:
    """The address of a proxy to which each packet takes ``seconds`` there and back."""
    host, _, port = address.partition(":")
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[int] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        task = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                waiting.put_nowait((time.monotonic() + seconds / 2, data))
        waiting.put_nowait((time.monotonic() + seconds / 2, b""))
        await task

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    async def serve() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()

    thread = threading.Thread(target=lambda: (loop.create_task(serve()), loop.run_forever()), daemon=True)
    thread.start()
    ready.wait(10)
    yield f"127.0.0.1:{found[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Wall and CPU seconds of one command, and what it said."""

    seconds: float
    cpu: float
    said: str


def run(folder: Path, variables: Mapping[str, str], *words: str) -> Run:
    """``sqshpipe WORDS`` to its end. SystemExit when it fails."""
    environment = {**os.environ, **variables, "SQSHPIPE_CACHE": str(folder / "cache")}
    argv = [sys.executable, "-m", "pipeline", *words]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds=seconds, cpu=cpu, said=done.stderr)


def measure(folder: Path, variables: Mapping[str, str], images: int, rounds: int) -> dict[str, float]:
    """Medians and the best of ``rounds``, after one run that locks all bases."""
    folder.mkdir()
    words = ("refresh", "--config", str(write_images(folder, variables["SQSHPIPE_REGISTRY"], images)))
    run(folder, variables, *words)
    quiet, starts = [], []
    for _ in range(rounds):
        quiet.append(run(folder, variables, *words))
        starts.append(run(folder, variables, "config", "schema"))
    if not all("nothing changed" in one.said for one in quiet):
        raise SystemExit(f"something changed: {quiet[-1].said}")
    seconds, cpu = (
        statistics.median(one.seconds for one in quiet),
        statistics.median(one.cpu for one in quiet),
    )
    start = statistics.median(one.cpu for one in starts)
    return {
        "seconds": round(seconds, 2),
        "seconds_best": round(min(one.seconds for one in quiet), 2),
        "cpu_seconds": round(cpu, 2),
        "start_cpu_seconds": round(start, 2),
        "part_of_goal": round(seconds / GOAL, 2),
        "cpu_part_of_goal": round(cpu / GOAL, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--delay", type=int, default=100, help="milliseconds there and back")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    given = parser.parse_args()
    found: dict[str, object] = {"images": given.images, "goal_seconds": GOAL}
    with PrivateRegistry(username="u", password="bench") as registry, tempfile.TemporaryDirectory() as folder:
        os.environ.update(registry.variables)
        push_bases(registry, given.images)
        near = measure(Path(folder, "near"), registry.variables, given.images, given.rounds)
        with from_afar(registry.address, given.delay / 1000) as address:
            variables = {**registry.variables, "SQSHPIPE_REGISTRY": address}
            far = measure(Path(folder, "far"), variables, given.images, given.rounds)
    found |= {"near": near, f"{given.delay} ms away": far}
    print(f"{given.images} images, nothing changed, median of {given.rounds}")
    for name in ("near", f"{given.delay} ms away"):
        figures = found[name]
        assert isinstance(figures, dict)
        print(f"  {name:<12}", *(f"{key} {value}" for key, value in figures.items()))
    print(json.dumps(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
