"""Many at once and many in a row: nothing grows, nothing runs over its limits. Longer with --slow."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config.reading import load
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.verify import verify
from pipeline.image import inputs
from pipeline.oci.digest import Digest
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.plan import changes
from tests import soak
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.peak import with_peak
from tests.support.store.releases import new_store

_ROOT = Path(__file__).parents[2]
LINUX = Platform(os="linux", architecture="amd64")


def _image(folder: Path, number: int = 0) -> Path:
    layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    for part in range(40):
        layer.file(f"d{part % 5}/f{part}", hashlib.sha256(b"%d.%d" % (number, part)).digest() * 2000)
    write_layout(folder, [layer])
    return folder


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_conversions_in_a_row_take_no_more_memory_or_descriptors(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    times = 64 if pytestconfig.getoption("--slow") else 12
    folder = _image(tmp_path / "image")
    seen, sums = [], set()
    for number in range(times):
        source = open_layout(folder, platform=LINUX)
        cache = tmp_path / f"cache{number % 2}"  # packs made at first, found afterwards
        made = convert(
            source,
            ConvertOptions(converter="native"),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "s",
            cache=cache,
        )
        verify(made)
        sums.add(made.sha256)
        del made, source
        seen.append((_resident(), _descriptors(), threading.active_count()))
    warm, last = seen[times // 3], seen[-1]
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{times} conversions: {warm[0] >> 20} MB after a third, {last[0] >> 20} MB at the end,"
            f" descriptors {warm[1]} and {last[1]}"
        )
    assert len(sums) == 1
    assert last[0] - warm[0] < 24 << 20
    assert last[1:] == warm[1:]


def test_many_at_once_stay_within_their_limits(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a process of its own, all with one cache: every file is right, none takes much memory."""
    count = 20 if pytestconfig.getoption("--slow") else 5
    images = [_image(tmp_path / f"image{number}", number % 3) for number in range(count)]
    environment = {
        **os.environ,
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": str(_ROOT),
    }

    def one(number: int) -> tuple[int, str, int]:
        out = tmp_path / f"{number}.sqsh"
        argv = [sys.executable, "-m", "pipeline", "convert"]
        argv += [f"oci:{images[number]}", "-o", str(out), "--json", "--converter", "native"]
        done, peak = with_peak(argv, env=environment)
        sha256 = json.loads(done.stdout)["sha256"] if done.stdout else done.stderr[-500:]
        return done.returncode, sha256, peak

    started = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(one, range(count)))
    peak = max(memory for _, _, memory in ended)
    with capsys.disabled():
        took = time.monotonic() - started
        print(f"\n{count} conversions at once: {took:.1f} s, at most {peak >> 20} MB each")  # noqa: T201
    assert [code for code, _, _ in ended] == [0] * count, ended
    for number, (_, sha256, _) in enumerate(ended):
        assert hashlib.sha256((tmp_path / f"{number}.sqsh").read_bytes()).hexdigest() == sha256
        assert sha256 == ended[number % 3][1], "the same layers, the same bytes"
    assert peak < 400 << 20
    assert list((tmp_path / "scratch").iterdir()) == []


def test_500_images_are_read_and_planned_in_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_store(tmp_path / "store")
    lines = [
        "version: 1",
        f"store: {{root: {tmp_path}/store}}",
        "registry: {url: registry.example.com/team}",
        "images:",
    ]
    for number in range(500):
        folder = tmp_path / f"d{number}"
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM base\nRUN echo {number}\n")
        lines += [
            f"  image-{number}:",
            "    base: nvcr.io/nvidia/pytorch:24.01-py3",
            f"    dockerfile: d{number}/Dockerfile",
        ]
    (tmp_path / "images.yaml").write_text("\n".join(lines) + "\n")
    started, before = time.process_time(), _resident()
    config = load(tmp_path / "images.yaml", environment={})
    loaded = time.process_time() - started
    digest = Digest.of(b"base")
    observed = [
        changes.Observation(spec=spec, base=digest, inputs=inputs.gather(spec, digest))
        for spec in config.images.values()
    ]
    keys = {each.inputs.key for each in observed if each.inputs is not None}
    took, grown = time.process_time() - started, _resident() - before
    with capsys.disabled():
        print(f"\n500 images: {loaded:.1f} s to read, {took:.1f} s with their inputs, {grown >> 20} MB")  # noqa: T201
    assert len(keys) == 500
    assert took < 20
    assert grown < 200 << 20


def test_the_life_of_a_store_with_faults(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 s of `python -m tests.soak`, 10 minutes with --slow: nothing is lost, nothing is half."""
    seconds = 600 if pytestconfig.getoption("--slow") else 20
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--seconds", str(seconds), "--folder", str(tmp_path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 200,
    )
    figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"problems": [done.stderr[-2000:]]}
    with capsys.disabled():
        print(f"\nsoak: {figures}")  # noqa: T201
    assert figures["problems"] == []
    assert (figures["lost"], figures["partial"], figures["temporary files left"]) == (0, 0, 0)
    assert figures["turns"] > 4
    assert sum(figures["faults injected"].values()) > 10
    assert set(figures["faults injected"]) == set(soak.FAULTS)
    assert figures["looks of the reader"] > 10
