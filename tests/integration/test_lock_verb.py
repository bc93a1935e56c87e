"""``sqshpipe lock`` against a real registry: what it writes, what it prints, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from demo.registry import PrivateRegistry
from pipeline.config.lock import read_lock
from pipeline.config.reading import load
from pipeline.errors import ConfigError, RegistryError
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import credentials_provider
from tests.support.command_line import app
from tests.support.images.tiny_images import push_image, push_index


@pytest.fixture
def client(registry: PrivateRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryClient]:
    for name, value in registry.variables.items():
        monkeypatch.setenv(name, value)
    with RegistryClient(registry.address, credentials=credentials_provider(registry.address)) as made:
        yield made


def write_images(folder: Path, **bases: str) -> Path:
    path = folder / "images.yaml"
    lines = "".join(f"  {name}: {{base: '{base}'}}\n" for name, base in bases.items())
    path.write_text(f"version: 1\nimages:\n{lines}")
    return path


def lock(path: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["lock", "--config", str(path), *more], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_locks_follows_and_reports(client: RegistryClient, tmp_path: Path) -> None:
    first = push_image(client, "lock/base", "1", content="one")
    index, platforms = push_index(
        client, "lock/multi", "1", content="x", platforms=("linux/amd64", "linux/arm64")
    )
    path = write_images(
        tmp_path,
        a=f"{client.host}/lock/base:1",
        b=f"{client.host}/lock/base:1",
        c=f"{client.host}/lock/multi:1",
    )
    assert lock(path, "--dry-run")[0] == 10
    assert not path.with_suffix(".lock").exists()
    code, said = lock(path)
    assert code == 0
    assert said.count("new") == 2
    held = read_lock(path.with_suffix(".lock"))
    config = load(path)
    base, multi = (held.get(config.image(name).base, config.image(name).platform) for name in "ac")
    assert base is not None
    assert multi is not None
    assert (base.digest, base.index_digest) == (first, None)
    assert (multi.digest, multi.index_digest) == (platforms["linux/amd64"], index)

    assert lock(path, "--dry-run") == (0, lock(path)[1])
    written = path.with_suffix(".lock").read_bytes()
    second = push_image(client, "lock/base", "1", content="two")
    code, said = lock(path, "--dry-run", "--json")
    assert code == 10
    moved = json.loads(said)[0]
    assert moved["images"] == ["a", "b"]
    assert (moved["locked"], moved["digest"], moved["moved"]) == (str(first), str(second), True)
    assert path.with_suffix(".lock").read_bytes() == written
    assert lock(path)[1].count(f"was {first}") == 1
    assert read_lock(path.with_suffix(".lock")).bases != held.bases


def test_entries_that_nothing_wants_go(client: RegistryClient, tmp_path: Path) -> None:
    for tag in ("1", "2"):
        push_image(client, "lock/old", tag, content=tag)
    lock(write_images(tmp_path, a=f"{client.host}/lock/old:1"))
    lock(write_images(tmp_path, a=f"{client.host}/lock/old:2"))
    assert [key[0] for key in read_lock(tmp_path / "images.lock").bases] == [f"{client.host}/lock/old:2"]


def test_a_base_that_is_made_here_and_does_not_exist_yet(
    client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lock of an images.yaml whose images build on each other."""
    monkeypatch.delenv("SQSHPIPE_REGISTRY")
    push_image(client, "lock/ngc", "1", content="one")
    path = tmp_path / "images.yaml"
    text = (
        f"version: 1\nregistry: {{url: {client.host}/chain}}\nimages:\n"
        f"  base: {{base: '{client.host}/lock/ngc:1'}}\n"
        f"  torch: {{base: '{client.host}/chain/base:v1'}}\n"
        f"  train: {{base: '{client.host}/chain/torch:v1'}}\n"
    )
    path.write_text(text)
    result = CliRunner().invoke(app, ["lock", "--config", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    for base, made_by in (("base:v1", "base"), ("torch:v1", "torch")):
        note = next(line for line in result.stderr.splitlines() if base in line)
        assert f"sqshpipe release {made_by}" in result.stderr
        assert "does not exist yet" in note
    assert [key[0] for key in read_lock(tmp_path / "images.lock").bases] == [f"{client.host}/lock/ngc:1"]
    code, said = lock(path, "--json")
    assert (code, [one["made_by"] for one in json.loads(said)]) == (0, ["base", "torch", None])

    push_image(client, "chain/base", "v1", content="two")
    assert lock(path)[1].count("new") == 1

    path.write_text(text + f"  other: {{base: '{client.host}/chain/nobody:v1'}}\n")  # nobody makes it
    with pytest.raises(RegistryError, match="chain/nobody:v1 does not exist"):
        lock(path)


def test_a_base_for_another_platform_is_reported(client: RegistryClient, tmp_path: Path) -> None:
    push_image(client, "lock/arm", "1", content="x", platform="linux/arm64")
    path = write_images(tmp_path, a=f"{client.host}/lock/arm:1")
    with pytest.raises(ConfigError, match="is not made for linux/amd64"):
        lock(path)


def test_what_could_be_asked_is_locked_also_when_another_base_fails(
    client: RegistryClient, tmp_path: Path
) -> None:
    pushed = push_image(client, "lock/partly", "1", content="one")
    good = f"{client.host}/lock/partly:1"
    path = write_images(tmp_path, good=good, missing=f"{client.host}/lock/partly:none")
    assert lock(path, "--dry-run")[0] == 10
    with pytest.raises(RegistryError, match="lock/partly:none does not exist"):
        lock(path)
    held = read_lock(path.with_suffix(".lock"))
    spec = load(path).image("good")
    found = held.get(spec.base, spec.platform)
    assert found is not None
    assert found.digest == pushed
    assert len(held.bases) == 1
    with pytest.raises(RegistryError, match="lock/partly:none does not exist"):
        lock(path, "--dry-run")
