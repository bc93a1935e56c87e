"""Many processes at one store: publishers of their own and of contested versions, readers in a loop.

crowd publish STORE NUMBER ROUNDS     prints "won VERSION" and "lost VERSION" of the contested ones
crowd read STORE STOP                 until the file STOP is there; prints how often it looked
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from pipeline.errors import ConfigError, PublishError
from pipeline.store.store import Store
from tests.support.store.releases import record_for

PAYLOAD = 200_000


def content(label: str) -> bytes:
    """Bytes that show whether they are complete: the label, and what must follow it."""
    seed = hashlib.sha256(label.encode()).digest()
    return label.encode().ljust(64) + seed * (PAYLOAD // len(seed))


def is_whole(data: bytes) -> bool:
    return data == content(data[:64].decode().strip())


def publish(root: Path, number: int, rounds: int) -> None:
    store = Store(root)
    for turn in range(rounds):
        own = f"v{turn}.{number}"
        _publish(store, own, content(own))
        _publish(store, f"same{turn}", content(f"same{turn}"))
        contested = f"contested{turn}"
        try:
            _publish(store, contested, content(f"{contested} by {number}"))
        except PublishError as error:
            if "other content" not in error.message:
                raise
            print(f"lost {contested}", flush=True)  # noqa: T201 - to the test
        else:
            print(f"won {contested}", flush=True)  # noqa: T201 - to the test
        store.promote(f"demo:{own}", "stable")


def _publish(store: Store, version: str, data: bytes) -> None:
    with store.staging() as staged:
        staged.write_bytes(data)
        store.publish(record_for(data, version, created="2026-01-01T00:00:00Z"), staged)


def read(root: Path, stop: Path) -> None:
    store = Store(root)
    looks = 0
    while not stop.exists():
        for name in ("demo", "demo:stable", "demo:v0.0", "demo:contested0"):
            try:
                release = store.resolve(name)
            except ConfigError:
                continue  # not published yet
            data = release.path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == release.sha256, name
            looks += 1
        for link in root.glob("demo/*.sqsh"):
            assert is_whole(link.read_bytes()), link
            looks += 1
        for cache in (root / "manifest.json", root / "demo/index.json", root / "demo/.meta/head.json"):
            if cache.exists():
                json.loads(cache.read_bytes())
                looks += 1
    print(looks)  # noqa: T201 - to the test


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        read(Path(sys.argv[2]), Path(sys.argv[3]))
