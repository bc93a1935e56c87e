"""From an OCI image to a .sqsh: sqshpipe beside every peer that is installed, in one run, in turn.

    python -m bench.convert [--size small|medium|large] [--rounds 3] [--output FILE.json]

Every tool gets zstd level 3 and blocks of 128 KiB where it has the option, and finds the image in the page
cache. sqshpipe's times contain a full read-back that compares the file with the image's layers; no peer does
that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import images, measuring
from bench.measuring import Way
from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.convert.enroot_program import Enroot, Places, import_uri, write_credentials, write_curl_config
from pipeline.errors import SqshpipeError
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform

MEGABYTES = {"tiny": 3, "small": 60, "medium": 400, "large": 2000}
ROUNDS = {"tiny": 1, "small": 3, "medium": 3, "large": 3}
SQUASH = "-noappend -comp zstd -Xcompression-level 3 -b 128K -no-progress -quiet"
ROOT = os.geteuid() == 0
_FROM_TREE = ("umoci", "mksquashfs")
_FROM_ENGINE = ("dockerd", "docker", "skopeo", "tar2sqfs")
_FROM_REGISTRY = ("enroot", "docker-registry", "htpasswd", "skopeo")

# The steps of `enroot import` with the tools that it runs, on layers that are there: recompress each layer
# into its cache, unpack each, mount them over each other, pack.
_ENROOT_STEPS = f"""
set -e; rm -rf "$WORK/steps"; mkdir -p "$WORK/steps" "$WORK/steps-cache"; cd "$WORK/steps"; mkdir root
number=0
for blob in $BLOBS; do
    number=$((number + 1)); mkdir $number
    printf '%s\\n%s\\n%s\\n' "$blob" "$WORK/steps-cache/${{blob##*/}}" $number
done > list
xargs -P "$(nproc)" -n 3 sh -c '[ -e "$1" ] || gzip -dc "$0" | zstd -q -f -o "$1"' < list
xargs -P "$(nproc)" -n 3 sh -c 'zstd -qdc "$1" | tar -C "$2" --numeric-owner -xf -' < list
lower=$(seq -s : $number -1 1)
unshare -m sh -ec 'mount -t overlay overlay -o "ro,lowerdir=$1" root
    mksquashfs root "$OUT" -all-root -no-xattrs {SQUASH}' sh "$lower"
"""


def ours(image: images.Image, work: Path) -> dict[str, Way]:
    """sqshpipe's own ways; what is cached is exactly what converting the tag `old` leaves."""
    program = f"{shlex.quote(sys.executable)} -m pipeline -q convert"
    new = f"oci:{image.layout}:new -o $OUT --converter"
    warm, cold = work / "warm", work / "cold"
    fill = f"{program} oci:{image.layout}:old -o $OUT --converter native"
    return {
        "sqshpipe native": Way(
            line=f"{program} {new} native",
            before=lambda: shutil.rmtree(cold, ignore_errors=True),
            environment={"SQSHPIPE_CACHE": str(cold)},
            note="nothing cached; with read-back",
        ),
        "sqshpipe native, top layer changed": Way(
            line=f"{program} {new} native",
            before=_only_what(fill, warm, work),
            environment={"SQSHPIPE_CACHE": str(warm)},
            note="packs of the other layers cached; with read-back",
        ),
        "sqshpipe mksquashfs": Way(
            line=f"{program} {new} mksquashfs",
            before=lambda: shutil.rmtree(cold, ignore_errors=True),
            environment={"SQSHPIPE_CACHE": str(cold)},
            note="unpacks, then mksquashfs; with read-back",
        ),
    }


def _only_what(
    fill: str, cache: Path, work: Path, environment: dict[str, str] | None = None
) -> Callable[[], None]:
    """Leaves in `cache` what the line `fill` puts there, and nothing of later runs."""
    kept: set[Path] = set()

    def before() -> None:
        if not kept:
            variables = {"SQSHPIPE_CACHE": str(cache), **(environment or {})}
            measuring.measure(Way(line=fill, environment=variables), work / "filling.sqsh")
            (work / "filling.sqsh").unlink()
            kept.update(path for path in cache.rglob("*") if path.is_file())
        for path in cache.rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()

    return before


def on_layers(image: images.Image, work: Path) -> dict[str, Way]:
    """Peers that start from the same layout."""
    bundle = work / "bundle"
    unpack = f"rm -rf {bundle}; umoci unpack --image {image.layout}:new {bundle}"
    tree = f"{bundle}/rootfs"
    ways = {
        "umoci, mksquashfs": Way(line=f"{unpack} && mksquashfs {tree} $OUT {SQUASH}"),
        "umoci, tar2sqfs": Way(
            line=f"{unpack} && tar -C {tree} -cf - . | tar2sqfs -q -f -c zstd -X level=3 -b 131072 $OUT"
        ),
        "umoci, ch-convert": Way(
            line=f"{unpack} && ch-convert -i dir -o squash {tree} $OUT",
            note="Charliecloud; gzip, its default",
        ),
    }
    if ROOT:
        layers = open_layout(image.layout, platform=Platform(os="linux", architecture="amd64"), tag="new")
        blobs = [image.layout / "blobs" / "sha256" / each.digest.hex for each in layers.manifest().layers]
        variables = {"WORK": str(work), "BLOBS": " ".join(map(str, blobs))}
        ways["enroot's steps"] = Way(
            line=_ENROOT_STEPS,
            before=lambda: shutil.rmtree(work / "steps-cache", ignore_errors=True),
            environment=variables,
            note="the tools that enroot import runs, without its download",
        )
        ways["enroot's steps, top layer changed"] = Way(
            line=_ENROOT_STEPS,
            before=lambda: (work / "steps-cache" / blobs[-1].name).unlink(missing_ok=True),
            environment=variables,
            note="the other layers in its cache",
        )
    return ways


def from_tree(image: images.Image, work: Path) -> dict[str, Way]:
    """The floor: packing alone, of a tree that somebody else has unpacked. Empty without _FROM_TREE."""
    if measuring.absent(*_FROM_TREE):
        return {}
    subprocess.run(
        ["umoci", "unpack", "--image", f"{image.layout}:new", work / "tree"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    tree = work / "tree" / "rootfs"
    note = "packing only: the tree is unpacked already"
    return {"mksquashfs alone": Way(line=f"mksquashfs {tree} $OUT {SQUASH}", note=note, floor=True)}


@contextlib.contextmanager
def from_engine(image: images.Image) -> Iterator[dict[str, Way]]:
    """`docker export` of a container that stands ready in an engine of our own; empty where none starts."""
    if not ROOT or measuring.absent(*_FROM_ENGINE):
        yield {}
        return
    with contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(PrivateEngine())
        except SqshpipeError as error:
            print(f"  left out: docker export: {error.message.splitlines()[0]}")
            yield {}
            return
        copy = ["skopeo", "copy", "-q", "--dest-daemon-host", engine.host]
        subprocess.run([*copy, f"oci:{image.layout}:new", "docker-daemon:bench:new"], check=True)
        docker = f"docker -H {engine.host}"
        create = f"{docker} create bench:new /bin/sh"
        made = subprocess.run(["sh", "-c", create], capture_output=True, text=True, check=True).stdout.strip()
        note = "the image is unpacked in the engine already"
        squash = "tar2sqfs -q -f -c zstd -X level=3 -b 131072 $OUT"
        yield {
            "docker export, tar2sqfs": Way(line=f"{docker} export {made} | {squash}", note=note, floor=True),
        }


@contextlib.contextmanager
def from_registry(image: images.Image, work: Path) -> Iterator[dict[str, Way]]:
    """enroot itself, where it is installed; it reads from a registry, and sqshpipe from the same one."""
    if measuring.absent(*_FROM_REGISTRY):
        yield {}
        return
    with PrivateRegistry(password="bench") as registry:
        login = f"{registry.username}:{registry.password}"
        target = f"docker://{registry.address}/bench"
        for tag in ("old", "new"):
            copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"]
            source = f"oci:{image.layout}:{tag}"
            subprocess.run([*copy, "--dest-creds", login, source, f"{target}:{tag}"], check=True)
        yield _enroot_ways(registry, work)


def _enroot_ways(registry: PrivateRegistry, work: Path) -> dict[str, Way]:
    cache, cold = work / "enroot-cache", work / "enroot-cold"
    variables = {"ENROOT_ALLOW_HTTP": "y", "ENROOT_SQUASH_OPTIONS": SQUASH.replace("-quiet", "")}
    places = Places.below(work / "enroot", cache=cache)
    write_credentials(places, registry.address, registry.username, registry.password)
    write_curl_config(places, {})  # else its first request is refused
    variables["CURL_HOME"] = str(places.config)
    for name in ("config", "temp", "runtime", "data"):
        variables[f"ENROOT_{name.upper()}_PATH"] = str(getattr(places, name))
    program = shlex.quote(str(Enroot.find().path))

    def line(tag: str) -> str:
        return f"{program} import -o $OUT {shlex.quote(import_uri(registry.address, 'bench', tag))}"

    def way(folder: Path, before: Callable[[], object], note: str) -> Way:
        environment = {**variables, "ENROOT_CACHE_PATH": str(folder)}
        return Way(line=line("new"), before=before, environment=environment, note=note)

    fill = _only_what(line("old"), cache, work, {**variables, "ENROOT_CACHE_PATH": str(cache)})
    packs = work / "from-registry"
    convert = f"{shlex.quote(sys.executable)} -m pipeline -q convert docker://{registry.address}/bench:new"
    return {
        "enroot import": way(cold, lambda: _empty(cold), "from a registry on loopback; nothing cached"),
        "enroot import, top layer changed": way(cache, fill, "the other layers in its cache"),
        "sqshpipe native, from the registry": Way(
            line=f"{convert} -o $OUT --converter native",
            before=lambda: shutil.rmtree(packs, ignore_errors=True),
            environment={**registry.variables, "SQSHPIPE_CACHE": str(packs)},
            note="as enroot import: downloads; nothing cached; with read-back",
        ),
    }


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


_WORDS = ("umoci", "mksquashfs", "tar2sqfs", "ch-convert", "unshare", "zstd")
# sqfstar 4.5.1 takes the level for the name of the file to make.
_NOT_FAIR = {"sqfstar": "cannot be given a zstd level"}


def possible(ways: dict[str, Way]) -> tuple[dict[str, Way], dict[str, str]]:
    """Those whose programs are here, and for the others which one is missing."""
    missing = {
        name: next((word for word in _WORDS if word in way.line.split() and not shutil.which(word)), "")
        for name, way in ways.items()
        if not name.startswith("sqshpipe native")
    }
    missing = {name: f"{word} is not installed" for name, word in missing.items() if word}
    return {name: way for name, way in ways.items() if name not in missing}, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=measuring.SIZES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS / "convert.json")
    given = parser.parse_args()
    rounds = given.rounds or ROUNDS[given.size]
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        image = images.make(work / "layout", megabytes=MEGABYTES[given.size])
        with from_registry(image, work) as enroot, from_engine(image) as engine:
            tree = from_tree(image, work)
            ways = {**ours(image, work), **enroot, **on_layers(image, work), **engine, **tree}
            ways, missing = possible(ways)
            if not enroot:
                missing["enroot import"] = measuring.absent(*_FROM_REGISTRY)
            if not engine:
                why = measuring.absent(*_FROM_ENGINE)
                missing["docker export, tar2sqfs"] = why or "no Docker Engine starts here"
            if not tree:
                missing["mksquashfs alone"] = measuring.absent(*_FROM_TREE)
            if not ROOT:
                missing["enroot's steps"] = "mounting layers over each other takes root"
            runs = measuring.in_turn(ways, rounds, work / "made.sqfs")
        found = {"image": image.facts(), "rounds": rounds, "programs": measuring.programs()}
        measuring.keep(
            given.output,
            given.size,
            work,
            {**found, "left_out": {**missing, **_NOT_FAIR}, "rows": measuring.rows(ways, runs)},
        )


if __name__ == "__main__":
    main()
