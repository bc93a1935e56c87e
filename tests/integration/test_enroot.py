"""The enroot converter: one table of cases, against a fake that records what it is asked, and for real.

The real one runs wherever enroot is installed; the layer cases then show what it gets wrong and that none of
it is published.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.registry import PrivateRegistry
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.enroot_program import Enroot, Places, import_uri, write_credentials
from pipeline.convert.verify import verify
from pipeline.errors import ConfigError, RegistryError, SqshpipeError, ToolError, VerificationError
from pipeline.oci.source import ImageSource
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.source import RegistrySource
from tests.support.images.images import image, of_case
from tests.support.images.layer_cases import LAYER_CASES, LayerCase
from tests.support.images.layers import LayerBuilder

REAL = shutil.which("enroot")
pytestmark = pytest.mark.needs("mksquashfs", "docker-registry")
BASE = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)

_FAKE = """#!{python}
import json, os, pathlib, sys
if sys.argv[1] == "version":
    print({version!r})
    sys.exit()
config = pathlib.Path(os.environ["ENROOT_CONFIG_PATH"])
credentials = config / ".credentials"
pathlib.Path({record!r}).write_text(json.dumps({{
    "argv": sys.argv[1:],
    "cwd": os.getcwd(),
    "umask": os.umask(0),
    "environment": dict(os.environ),
    "credentials": credentials.read_text() if credentials.exists() else None,
    "mode": credentials.stat().st_mode & 0o777 if credentials.exists() else None,
    "curlrc": (config / ".curlrc").read_text(),
    "cached": {{
        file.name: file.read_bytes()[:4].hex()
        for file in pathlib.Path(os.environ["ENROOT_CACHE_PATH"]).iterdir() if file.is_file()
    }},
}}))
print("[INFO] Fetching image", file=sys.stderr)
{more}
pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_bytes(b"squashfs")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A registry with a password, and folders to work in."""

    registry: PrivateRegistry
    client: RegistryClient
    folder: Path

    def push(self, source: ImageSource, layout: Path, *, tag: str | None = "v1") -> RegistrySource:
        manifest, repository = source.manifest(), self.folder.name.lower()
        for blob in (manifest.config, *manifest.layers):
            with (layout / "blobs" / "sha256" / blob.digest.hex).open("rb") as stream:
                self.client.push_blob(repository, blob, stream)
        self.client.put_manifest(repository, tag or str(manifest.digest), manifest.raw, manifest.media_type)
        return RegistrySource(self.client, repository, manifest)

    def image(self, layers: Sequence[LayerBuilder], *, tag: str | None = "v1", **more: Any) -> RegistrySource:
        return self.push(image(self.folder / "image", layers, **more), self.folder / "image", tag=tag)

    def convert(self, source: ImageSource, **options: Any) -> SquashfsFile:
        return convert(
            source,
            ConvertOptions(**{"converter": "enroot", **options}),
            output=self.folder / "out" / "x.sqsh",
            scratch=self.folder / "scratch",
            cache=self.folder / "cache",
        )


@pytest.fixture
def world(registry: PrivateRegistry, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "out").mkdir()
    found = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _host: found) as client:
        yield World(registry=registry, client=client, folder=tmp_path)
    assert list((tmp_path / "scratch").glob("*")) == []
    assert [file.name for file in (tmp_path / "out").iterdir()] in ([], ["x.sqsh"])


Recorded = Callable[[], dict[str, Any]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    """Puts an enroot of some version into PATH; gives back a way to what it recorded."""

    def install(version: str = "4.1.2", more: str = "") -> Recorded:
        record, tools = tmp_path / "record.json", tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        script = _FAKE.format(python=sys.executable, version=version, record=str(record), more=more)
        (tools / "enroot").write_text(script)
        (tools / "enroot").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

        def recorded() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(record.read_text())
            return found

        return recorded

    return install


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image and what enroot is asked for it. `reference` with {digest} as a placeholder."""

    name: str
    layers: tuple[LayerBuilder, ...]
    version: str = "4.1.2"
    reference: str = "@{digest}"
    options: tuple[tuple[str, int], ...] = ()
    squash: str = "-comp zstd -Xcompression-level 3 -b 131072"
    compression: str = "gzip"


_FILES = LayerBuilder().dir("d").file("d/f", b"x" * 300_000).hardlink("d/g", "d/f").symlink("l", "d")
CASES = (
    Case(name="by digest", layers=(BASE, _FILES)),
    Case(name="zstd layers", layers=(BASE, _FILES), compression="zstd"),
    Case(
        name="level and block size",
        layers=(BASE, _FILES),
        options=(("zstd_level", 19), ("block_size", 1 << 20)),
        squash="-comp zstd -Xcompression-level 19 -b 1048576",
    ),
    Case(name="by tag before version 4", layers=(BASE, _FILES), version="3.4.1", reference=":v1"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_enroot_is_asked(case: Case, world: World, fake: Callable[..., Recorded]) -> None:
    recorded = fake(case.version)
    source = world.image(case.layers, compression=case.compression)
    made = world.convert(source, **dict(case.options))
    asked = recorded()
    uri = f"docker://{world.registry.address}#{source.repository}" + case.reference.format(
        digest=source.manifest().digest
    )
    output = asked["argv"][4]
    assert asked["argv"] == ["import", "--arch", "x86_64", "--output", output, "--", uri]
    assert Path(output).parent.parent == made.path.parent, "in a folder of its own beside the place"
    environment = asked["environment"]
    assert environment["ENROOT_SQUASH_OPTIONS"].startswith(
        case.squash + " -noappend -exit-on-error -mkfs-time 0 -no-xattrs -mem "
    )
    assert environment["ENROOT_ALLOW_HTTP"] == "yes"  # loopback
    assert environment["ENROOT_CACHE_PATH"] == str(world.folder / "cache" / "enroot")
    for name in ("CONFIG", "TEMP", "RUNTIME", "DATA"):
        assert environment[f"ENROOT_{name}_PATH"].startswith(str(world.folder / "scratch"))
    assert asked["umask"] == 0o022
    assert asked["mode"] == 0o600
    assert asked["credentials"] == (
        f"machine 127.0.0.1 login {world.registry.username} password {world.registry.password}\n"
    )
    assert world.registry.password not in " ".join([*asked["argv"], *environment.values()])
    assert "application/vnd.oci.image.manifest.v1+json" in asked["curlrc"]
    assert (made.converter.name, made.converter.versions["enroot"]) == ("enroot", case.version)
    assert b"d/f" in made.tree


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_for_real(case: Case, world: World) -> None:
    made = world.convert(world.image(case.layers, compression=case.compression), **dict(case.options))
    verify(made)


# What the real one gets wrong, by the name of the layer case: its own failure, with our hint, or a file that
# verification refuses.
WRONG: dict[str, tuple[type[SqshpipeError], str]] = {
    "whiteout of what is not there": (ToolError, "hides nothing"),
    "whiteout in the lowest layer": (ToolError, "beside a file of its name"),
    "bookkeeping of AUFS": (ToolError, "what AUFS left"),
    "opaque root": (VerificationError, "not in the image"),
    "whiteout and file of one name in one layer": (ToolError, "beside a file of its name"),
    "whiteout after a folder of its name": (ToolError, "beside a file of its name"),
    "hard link to a file of a lower layer": (ToolError, "hard link to a file of a lower layer"),
    "hard link to a file that the same layer hides": (ToolError, "hard link to a file of a lower layer"),
    "hard link whose folder has no entry": (ToolError, "hard link to a file of a lower layer"),
    "hard link to a hard link": (ToolError, "hard link to a file of a lower layer"),
    "duplicate entries": (ToolError, "in place of a folder"),
    "file under a symlinked folder of a lower layer": (ToolError, "hides nothing"),
    "folder entry over a symlink of a lower layer": (ToolError, "hides nothing"),
    "file under symlinks that point out of the root": (
        VerificationError,
        "kind directory, should be symlink",
    ),
}


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layer_cases_for_real(case: LayerCase, world: World) -> None:
    _, source = of_case(case, world.folder / "image")
    pushed = world.push(source, world.folder / "image")
    if case.name not in WRONG:
        verify(world.convert(pushed))
        return
    kind, word = WRONG[case.name]
    with pytest.raises(kind) as caught:
        verify(world.convert(pushed))
    assert word in str(caught.value)
    assert "--converter native" in caught.value.hint


def test_wrong_layers_are_all_in_the_table() -> None:
    assert set(WRONG) <= {case.name for case in LAYER_CASES}


@pytest.mark.parametrize("flags", [[], ["-v"]], ids=["normal", "verbose"])
def test_what_mksquashfs_prints_is_shown_with_v_only(
    flags: list[str], world: World, fake: Callable[..., Recorded]
) -> None:
    fake(more="print('Exportable Squashfs 4.0 filesystem, zstd compressed')")
    source = world.image([BASE])
    name = f"docker://{world.registry.address}/{source.repository}@{source.manifest().digest}"
    argv = [sys.executable, "-m", "pipeline", *flags, "convert", name, "--converter", "enroot"]
    done = subprocess.run(
        [*argv, "-o", str(world.folder / "out" / "x.sqsh")],
        env={
            **os.environ,
            **world.registry.variables,
            "SQSHPIPE_CACHE": str(world.folder / "cache"),
            "SQSHPIPE_SCRATCH": str(world.folder / "scratch"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "convert  enroot, sha256:" in done.stderr
    assert ("Exportable Squashfs" in done.stderr) == bool(flags), done.stderr


def test_a_tag_that_moves_meanwhile_is_noticed(world: World, fake: Callable[..., Recorded]) -> None:
    source = world.image([BASE])
    other = image(world.folder / "other", [BASE, _FILES])
    raw = world.folder / "manifest.json"
    raw.write_bytes(other.manifest().raw)
    world.push(other, world.folder / "other", tag="other")
    move = (
        "import base64, urllib.request\n"
        f"data = open({str(raw)!r}, 'rb').read()\n"
        f"url = 'http://{world.registry.address}/v2/{source.repository}/manifests/v1'\n"
        "user = credentials.read_text().split()\n"
        "request = urllib.request.Request(url, data=data, method='PUT', headers={\n"
        "  'Authorization': 'Basic ' + base64.b64encode(f'{user[3]}:{user[5]}'.encode()).decode(),\n"
        f"  'Content-Type': {other.manifest().media_type!r}}})\n"
        "urllib.request.urlopen(request)\n"
    )
    fake("3.4.1", move)
    with pytest.raises(RegistryError, match="was moved while enroot read it"):
        world.convert(source)


def test_before_version_4_an_image_needs_a_tag(world: World, fake: Callable[..., Recorded]) -> None:
    fake("3.4.1")
    with pytest.raises(ToolError, match="has no tag"):
        world.convert(world.image([BASE], tag=None))


def test_a_version_that_is_too_old_is_reported_before_the_work(
    world: World, fake: Callable[..., Recorded]
) -> None:
    recorded = fake("3.1.0")
    with pytest.raises(ToolError, match="too old"):
        world.convert(world.image([BASE, _FILES]))
    with pytest.raises(FileNotFoundError):
        recorded()


_COMPRESSIONS = [["zstd", "zstd"], ["gzip", "zstd"], ["zstd", "gzip"], ["none", "zstd"]]


@pytest.mark.parametrize("version", ["3.4.1", "4.1.2"])
@pytest.mark.parametrize("compression", _COMPRESSIONS, ids="-".join)
def test_layers_of_any_compression_are_in_its_cache(
    compression: list[str], version: str, world: World, fake: Callable[..., Recorded]
) -> None:
    """By itself no version up to 4.1.2 can read all of these; it asks the registry for none of them."""
    recorded = fake(version)
    source = world.image([BASE, _FILES], compression=compression)
    world.convert(source)
    cached = recorded()["cached"]
    assert [cached[layer.digest.hex] for layer in source.manifest().layers] == ["28b52ffd"] * 2  # zstd


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
@pytest.mark.parametrize("compression", _COMPRESSIONS, ids="-".join)
def test_layers_of_any_compression_for_real(compression: list[str], world: World) -> None:
    verify(world.convert(world.image([BASE, _FILES], compression=compression)))


def _by_hand(world: World, source: RegistrySource) -> Path:
    """`enroot import` as people type it: from the registry, with an empty cache."""
    made = world.folder / "by-hand.sqsh"
    places = Places.below(world.folder / "by-hand", cache=world.folder / "by-hand-cache")
    write_credentials(places, world.registry.address, world.registry.username, world.registry.password)
    Enroot.find().import_image(
        import_uri(world.registry.address, source.repository, "v1"),
        made,
        places=places,
        architecture="amd64",
        plain_http=True,
        zstd_level=3,
        block_size=131072,
    )
    return made


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
def test_enroot_by_hand_fails_at_zstd_over_gzip(world: World) -> None:
    """What docs/how-to/dockerfiles.md says of `enroot import` beside the store."""
    version = Enroot.find().version
    if version > (4, 1, 2):
        pytest.skip(f"enroot {version}")
    large = LayerBuilder().file("large", random.Random(1).randbytes(3000))
    with pytest.raises(ToolError, match="enroot failed"):
        _by_hand(world, world.image([BASE, large], compression=["gzip", "zstd"]))


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
def test_enroot_by_hand_loses_a_small_zstd_layer(world: World) -> None:
    """tar takes less than one block of 512 bytes for an empty archive, and enroot ends with 0."""
    version = Enroot.find().version
    if version > (4, 1, 2):
        pytest.skip(f"enroot {version}")
    small = LayerBuilder().file("small", b"small")
    made = _by_hand(world, world.image([BASE, small], compression=["gzip", "zstd"]))
    names = subprocess.run(["unsquashfs", "-l", made], capture_output=True, text=True, check=True).stdout
    assert "squashfs-root/bin/sh\n" in names
    assert "squashfs-root/small" not in names


def test_a_failure_leaves_nothing_and_says_what_it_means(world: World, fake: Callable[..., Recorded]) -> None:
    fake(
        more="open(sys.argv[sys.argv.index('--output') + 1], 'w').write('half')\n"
        "print('[ERROR] URL https://x returned error code: 406 Not Acceptable', file=sys.stderr)\n"
        "sys.exit(1)"
    )
    with pytest.raises(ToolError, match="enroot failed with exit code 1") as caught:
        world.convert(world.image([BASE]))
    assert "#263" in caught.value.hint
    assert world.registry.password not in str(caught.value)
    assert list((world.folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "more", "settings"),
    [
        ("4.1.2", "", {"Cmd": ["sh", "-c", "one\ntwo"]}),
        ("3.1.0", "", {}),
        ("4.1.2", "print('[ERROR] Failed to create mount namespace', file=sys.stderr)\nsys.exit(1)", {}),
    ],
    ids=["misread", "too old", "no privileges"],
)
def test_auto_makes_the_file_all_the_same(
    version: str, more: str, settings: dict[str, Any], world: World, fake: Callable[..., Recorded]
) -> None:
    fake(version, more)
    source = world.image([BASE, _FILES], config=settings)
    made = world.convert(source, converter="auto")
    assert made.converter.name == "native"
    verify(made)


def test_other_sources_and_options_are_refused(world: World, fake: Callable[..., Recorded]) -> None:
    fake()
    with pytest.raises(ConfigError, match="only images in a registry"):
        world.convert(image(world.folder / "layout", [BASE]))
    with pytest.raises(ConfigError, match="neither owners nor extended attributes"):
        world.convert(world.image([BASE]), keep_xattrs=True)
