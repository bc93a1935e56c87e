"""Many images at once, here and on a real Slurm, through the whole path; and the refresh that rebuilds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import credentials_provider
from tests.support.images.tiny_images import push_image
from tests.support.servers import slurm
from tests.support.servers.slurm import Slurm
from tests.support.store.releases import new_store
from tests.support.waiting import until

pytestmark = pytest.mark.needs("docker-registry", "htpasswd", "mksquashfs")
ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(registry: PrivateRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryClient]:
    for name, value in registry.variables.items():
        monkeypatch.setenv(name, value)
    with RegistryClient(registry.address, credentials=credentials_provider(registry.address)) as made:
        yield made


@pytest.fixture
def run(tmp_path: Path, registry: PrivateRegistry) -> Run:
    new_store(tmp_path / "store")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")},
        **registry.variables,
        "SQSHPIPE_REGISTRY": f"{registry.address}/{tmp_path.name.replace('_', '-').lower()}",
        "SQSHPIPE_STORE": str(tmp_path / "store"),
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "PYTHONPATH": str(ROOT),
    }

    def start(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return start


def write(folder: Path, client: RegistryClient, count: int, *, more: str = "") -> None:
    """``count`` images that mirror bases of their own."""
    lines = []
    for number in range(count):
        repository = f"many/{folder.name.replace('_', '-').lower()}/base{number}"
        push_image(client, repository, "1.0", content=f"{number}")
        lines.append(f"  image{number}: {{base: '{client.host}/{repository}:1.0'}}\n")
    (folder / "images.yaml").write_text(
        "version: 1\n"
        "defaults: {scan: {scanner: none}, convert: {converter: mksquashfs}, slurm: {cpus: 1, time: 5m}}\n"
        f"{more}images:\n{''.join(lines)}"
    )


def published(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "store").glob("image*/v1.json")}


def _documents(text: str) -> list[dict[str, str]]:
    """JSON documents one after the other: commands that run side by side may share a line of a file."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_all_images_side_by_side_and_a_failure_costs_only_itself(
    client: RegistryClient, run: Run, tmp_path: Path
) -> None:
    reported = tmp_path / "reported"
    notify = f"notify: [{{command: [/bin/sh, -c, 'cat >> {reported}; echo >> {reported}']}}]\n"
    write(tmp_path, client, 3, more=notify)
    with (tmp_path / "images.yaml").open("a") as file:
        file.write(f"  broken: {{base: '{client.host}/many/nowhere:1.0'}}\n")
    done = run("release", "--all", "--tag", "v1", "--jobs", "3", SQSHPIPE_METRICS=str(tmp_path / "metrics"))
    assert done.returncode == 4, done.stderr
    assert published(tmp_path) == {"image0", "image1", "image2"}
    lines = done.stdout.splitlines()
    assert sum(line.startswith("published  image") for line in lines) == 3
    failed = next(line for line in lines if line.startswith("failed"))
    assert failed.split() == ["failed", "broken:v1", "exit", "4"]
    assert (done.stdout + done.stderr).count("many/nowhere:1.0 does not exist") == 1, "the reason, once"
    alone = run("release", "image0", "--tag", "v0")
    assert alone.returncode == 0, alone.stderr
    events = _documents(reported.read_text())
    assert events.pop()["details"] == {"path": alone.stdout.strip()}
    assert sorted(event["kind"] for event in events) == ["failed", "published", "published", "published"]
    assert len(list((tmp_path / "metrics").glob("*.prom"))) == 4
    plan = run("plan", "image0", "--tag", "v1")
    assert (plan.returncode, "nothing to do" in plan.stdout) == (0, True), plan.stdout
    assert run("plan", "image0", "--tag", "v2").returncode == 10
    again = run("release", "--all", "--tag", "v1", "--json")
    assert [one["code"] for one in json.loads(again.stdout)] == [0, 0, 0, 4]


@pytest.mark.parametrize("converter", ["mksquashfs", "native"])
def test_two_machines_that_make_the_same_at_once_agree(
    client: RegistryClient, run: Run, tmp_path: Path, converter: str
) -> None:
    write(tmp_path, client, 1)
    text = (tmp_path / "images.yaml").read_text()
    (tmp_path / "images.yaml").write_text(text.replace("converter: mksquashfs", f"converter: {converter}"))

    def machine(number: int) -> subprocess.CompletedProcess[str]:
        own = {name: str(tmp_path / f"{name}{number}") for name in ("SQSHPIPE_CACHE", "SQSHPIPE_SCRATCH")}
        return run("release", "image0", "--tag", "v1", **own)

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(machine, range(3)))
    assert [one.returncode for one in ended] == [0, 0, 0], "\n".join(one.stderr for one in ended)
    assert {one.stdout for one in ended} == {f"{tmp_path / 'store' / 'image0' / 'v1.sqsh'}\n"}
    assert len(list((tmp_path / "store" / "blobs" / "sha256").iterdir())) == 1


def test_refresh_rebuilds_what_moved_and_nothing_else(
    client: RegistryClient, run: Run, tmp_path: Path
) -> None:
    write(tmp_path, client, 2)
    assert run("lock").returncode == 0
    assert run("release", "--all", "--tag", "v1").returncode == 0
    quiet = run("refresh", "--rebuild")
    assert (quiet.returncode, quiet.stdout) == (0, ""), quiet.stderr
    push_image(client, f"many/{tmp_path.name.replace('_', '-').lower()}/base1", "1.0", content="moved")
    explained = run("plan", "--json")
    assert explained.returncode == 0, explained.stdout  # the lock still stands: nothing would run
    assert "moved from" in json.loads(explained.stdout)["images"][1]["notes"][0]
    moved = run("refresh", "--rebuild", "--json")
    assert moved.returncode == 0, moved.stderr
    rebuilt = json.loads(moved.stdout)["rebuilt"]
    assert [one["image"] for one in rebuilt] == ["image1"]
    assert rebuilt[0]["version"].startswith("1.0-20")
    assert rebuilt[0]["version"].endswith(".1")
    assert Path(rebuilt[0]["path"]).exists()
    assert run("refresh", "--rebuild").stdout == ""


@pytest.mark.needs("slurmctld", "slurmd", "sbatch")
def test_eight_images_on_two_nodes_of_which_one_dies(
    client: RegistryClient, run: Run, tmp_path: Path
) -> None:
    """Conversions on n2 never end, so that the node is sure to die in the middle of one."""
    write(tmp_path, client, 8)
    tools, converting = tmp_path / "tools", tmp_path / "converting"
    tools.mkdir()
    (tools / "mksquashfs").write_text(
        f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && [ "$1" != -version ] && touch {converting} && sleep 200\n'
        f'exec {shutil.which("mksquashfs")} "$@"\n'
    )
    (tools / "mksquashfs").chmod(0o755)
    with slurm.private_slurm(tmp_path / "slurm", nodes=2, cpus=2) as cluster, ThreadPoolExecutor(1) as pool:
        killer = pool.submit(_kill_when_there, cluster, "n2", converting)
        words = ("release", "--all", "--tag", "v1", "--executor", "slurm", "--json")
        path = f"{tools}:{os.environ['PATH']}"
        done = run(*words, **cluster.env, SQSHPIPE_SHARED=str(tmp_path / "shared"), PATH=path)
        assert killer.result(), "no conversion began on n2"
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout)
    assert published(tmp_path) == {f"image{number}" for number in range(8)}
    assert len(outcomes) == 8
    assert {outcome["where"] for outcome in outcomes if outcome["attempts"] > 1} == {"n1"}


def _kill_when_there(cluster: Slurm, node: str, path: Path) -> bool:
    """Kill a node once a file is there; False when it did not come."""
    if found := until(path.exists):
        cluster.kill_node(node)
    return found
