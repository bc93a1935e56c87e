"""Mirror a 1 GB image between two registries: ours against ``skopeo copy``, time and peak memory.

    python -m bench.mirror [--megabytes 1024] [--rounds 3]

Both registries are started here, on loopback, with passwords. Layers are gzip members of random bytes, so
that skopeo
has no reason to compress anything. Each round copies into repositories that are empty, the two in turn.
The blobs are
read once before, so that both find them in the page cache. Prints a table and one JSON line.

Two cores that other work kept busy, 1024 MB, median of two rounds (results/mirror.json): sqshpipe 11.1 s,
4.2 s of CPU, 42 MB peak; skopeo 1.9.3 11.9 s, 6.0 s of CPU, 23 MB peak; ratio 1.08. In another run 19.8 s
against 27.3 s, ratio 1.38, 43 MB. The peak is the same at 300 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo.registry import PrivateRegistry
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.transfer import copy

# Shares of the whole, as a large base has them: one giant, some middling, some small.
_SHARES = (0.42, 0.22, 0.14, 0.09, 0.06, 0.04, 0.02, 0.01)
_CREDENTIALS = Credentials(username="sqshpipe", password="bench")


def client(address: str) -> RegistryClient:
    return RegistryClient(address, credentials=lambda _: _CREDENTIALS)


def make_image(address: str, megabytes: int) -> Digest:
    """Push an image of about ``megabytes`` MB; gives its manifest's digest."""
    registry = client(address)
    layers, diff_ids = [], []
    for number, share in enumerate(_SHARES):
        pieces = random.Random(number)
        plain = b"".join(pieces.randbytes(1_000_000) for _ in range(max(1, round(share * megabytes))))
        diff_ids.append(str(Digest.of(plain)))
        layers.append(_push(registry, OCI_LAYER + "+gzip", gzip.compress(plain, 1)))
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers}
    manifest["config"] = _push(registry, OCI_CONFIG, json.dumps(config).encode())
    return registry.put_manifest("base", "v1", json.dumps(manifest).encode(), OCI_MANIFEST)


def _push(registry: RegistryClient, media_type: str, data: bytes) -> dict[str, object]:
    blob = Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
    registry.push_blob("base", blob, io.BytesIO(data))
    return {"mediaType": media_type, "digest": str(blob.digest), "size": blob.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One copy: wall seconds, seconds of CPU, peak resident MB."""

    seconds: float
    cpu: float
    peak: float


def measured(argv: list[str]) -> Run:
    """Run a program to its end and measure it; the peak is VmHWM, since ru_maxrss counts from the fork."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    status_file, peak = Path(f"/proc/{process.pid}/status"), 0
    while True:
        with contextlib.suppress(OSError, StopIteration):
            lines = status_file.read_text().splitlines()
            peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{argv[:3]} failed with {process.returncode}")
    seconds = time.perf_counter() - start
    return Run(seconds=seconds, cpu=usage.ru_utime + usage.ru_stime, peak=peak / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--copy", nargs=4, metavar=("SOURCE", "TARGET", "REPOSITORY", "DIGEST"))
    options = parser.parse_args()
    if options.copy:
        source, target, repository, digest = options.copy
        copy(client(source), "base", Digest.parse(digest), client(target), repository, tags={})
        return
    with PrivateRegistry(password="bench") as source:
        found = compare(source.address, options.megabytes, options.rounds)
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def compare(source: str, megabytes: int, rounds: int) -> dict[str, object]:
    digest = make_image(source, megabytes)
    runs: dict[str, list[Run]] = {"sqshpipe": [], "skopeo": []}
    for number in range(rounds):
        for name in ("sqshpipe", "skopeo") if number % 2 == 0 else ("skopeo", "sqshpipe"):
            with PrivateRegistry(password="bench") as target:
                runs[name].append(measured(command(name, source, target.address, digest)))
    print(f"{megabytes} MB, {rounds} rounds, median")
    result: dict[str, object] = {"megabytes": megabytes, "rounds": rounds}
    median = {}
    for name, done in runs.items():
        wall = median[name] = statistics.median(run.seconds for run in done)
        cpu, peak = statistics.median(run.cpu for run in done), max(run.peak for run in done)
        result[name] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak)}
        print(
            f"  {name:9} {wall:6.2f} s  {megabytes / wall:5.0f} MB/s  {cpu:6.2f} s CPU  {peak:4.0f} MB peak"
        )
    result["ratio"] = round(median["skopeo"] / median["sqshpipe"], 2)
    print(f"  ratio     {result['ratio']} (skopeo / sqshpipe; above 1 we are faster)")
    return result


def command(name: str, source: str, target: str, digest: Digest) -> list[str]:
    """What copies ``base@digest`` from ``source`` to ``target``."""
    if name == "sqshpipe":
        return [sys.executable, "-m", "bench.mirror", "--copy", source, target, "copy", str(digest)]
    login = f"{_CREDENTIALS.username}:{_CREDENTIALS.password}"
    argv = ["skopeo", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"]
    argv += ["--dest-tls-verify=false", "--src-creds", login, "--dest-creds", login]
    return [*argv, f"docker://{source}/base@{digest}", f"docker://{target}/copy:v1"]


if __name__ == "__main__":
    main()
