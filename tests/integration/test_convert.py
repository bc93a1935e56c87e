"""Converters with the real mksquashfs, looked at through unsquashfs, the kernel and squashfuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.verify import verify
from pipeline.errors import FormatError, ToolError
from pipeline.oci.source import ImageSource
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system.mount import mounted
from tests.support.images.images import assert_case, assert_times_and_owners, image, of_case
from tests.support.images.layer_cases import LAYER_CASES, LayerCase
from tests.support.images.layers import LayerBuilder, raw_header, write_layout

pytestmark = pytest.mark.needs("mksquashfs", "unsquashfs")
ROOT = os.geteuid() == 0
CONVERTERS = ("mksquashfs", "native")


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Where a conversion works; at the end scratch must be empty and only complete files be left."""
    found = {name: tmp_path / name for name in ("scratch", "cache", "out")}
    for folder in found.values():
        folder.mkdir()
    yield found
    assert list(found["scratch"].iterdir()) == []
    assert all(file.suffix == ".sqsh" and not file.name.startswith(".") for file in found["out"].iterdir())


def converted(
    source: ImageSource, places: dict[str, Path], converter: str = "mksquashfs", **options: object
) -> SquashfsFile:
    return convert(
        source,
        ConvertOptions(converter=converter, **options),  # type: ignore[arg-type]
        output=places["out"] / f"{converter}.sqsh",
        scratch=places["scratch"],
        cache=places["cache"],
    )


BASE = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)


@pytest.mark.needs("squashfuse", "/dev/fuse")
@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layer_cases(case: LayerCase, converter: str, places: dict[str, Path], tmp_path: Path) -> None:
    case, source = of_case(case, tmp_path / "image")
    made = converted(source, places, converter)
    assert verify(made).checks
    folder = tmp_path / "mounted"
    folder.mkdir()
    if ROOT:
        with mounted(made.path, folder, kind="kernel"):
            assert_case(folder, case)
            assert_times_and_owners(folder, made.tree)
    with mounted(made.path, folder, kind="fuse"):
        assert_case(folder, case, links=False)
        assert_times_and_owners(folder, made.tree)
    if ROOT:  # unsquashfs needs root for devices and owners
        unpacked = tmp_path / "unpacked"
        subprocess.run(
            ["unsquashfs", "-q", "-n", "-d", unpacked, made.path], check=True, stdout=subprocess.DEVNULL
        )
        assert_case(unpacked, case)
        assert_times_and_owners(unpacked, made.tree)


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("compressor", ["gzip", "lz4"])
def test_other_compressors(compressor: str, converter: str, places: dict[str, Path], tmp_path: Path) -> None:
    content = b"".join(b"%d squared is %d\n" % (number, number**2) for number in range(30_000))
    layers = [
        BASE,
        LayerBuilder().file("big", content).file("small", b"s" * 300).file("noise", os.urandom(9000)),
    ]
    made = converted(image(tmp_path / "image", layers), places, converter, compressor=compressor)
    assert verify(made).checks
    assert made.converter.options["compressor"] == compressor
    with SquashfsImage.open(made.path) as opened:
        assert opened.superblock.compressor.name.lower() == compressor
    subprocess.run(["unsquashfs", "-q", "-n", "-no-xattrs", "-d", tmp_path / "un", made.path], check=True)
    assert (tmp_path / "un/big").read_bytes() == content


def test_both_converters_give_the_same_tree(places: dict[str, Path], tmp_path: Path) -> None:
    """All cases at once, each in a folder of its own, listed by unsquashfs to the last bit."""
    config = {"WorkingDir": "/tmp/../srv//app", "Volumes": {"/data/v": {}}, "Env": ["A=b c"], "Cmd": ["x'y"]}
    layers = [*(layer for case in LAYER_CASES for layer in case.layers if not case.compression), BASE]
    listings = []
    for converter in CONVERTERS:
        source = image(tmp_path / converter, layers, config=config)
        made = converted(source, places, converter)
        verify(made)
        listing = subprocess.run(
            ["unsquashfs", "-lln", made.path],
            check=True,
            capture_output=True,
            env={**os.environ, "TZ": "UTC"},
        )
        listings.append(listing.stdout)
    assert listings[0] == listings[1]


@pytest.mark.parametrize("converter", CONVERTERS)
def test_the_same_image_gives_the_same_bytes(
    converter: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = LayerBuilder()
    for number in range(50):
        layer.file(f"d{number % 7}/f{number}", bytes([number]) * (number * 5000))
    source = image(tmp_path / "image", [BASE, layer])
    first = converted(source, places, converter)
    time.sleep(1.1)  # another second on the clock
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    second = converted(source, places, converter)
    assert (first.sha256, first.convert_key) == (second.sha256, second.convert_key)


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize(("level", "block"), [(1, 4096), (19, 1 << 20)])
def test_level_and_block_size_are_as_asked_for(
    converter: str, level: int, block: int, places: dict[str, Path], tmp_path: Path
) -> None:
    source = image(tmp_path / "image", [BASE, LayerBuilder().file("f", os.urandom(5000) * 500)])
    made = converted(source, places, converter, zstd_level=level, block_size=block)
    verify(made)
    said = subprocess.run(["unsquashfs", "-s", made.path], check=True, capture_output=True, text=True).stdout
    assert f"Block size {block}" in said
    assert "Compression zstd" in said
    assert f"compression-level {level}" in said


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
@pytest.mark.parametrize("converter", CONVERTERS)
def test_owners_and_attributes_are_kept_when_asked_for(
    converter: str, places: dict[str, Path], tmp_path: Path
) -> None:
    layer = LayerBuilder().dir("d", uid=1000, gid=100).file("d/f", b"x", uid=5, gid=6, mode=0o4711)
    layer.file("caps", b"y", xattrs={"security.capability": b"\x01\x00\x00\x02" + bytes(16)}).symlink(
        "l", "f", uid=7
    )
    source = image(tmp_path / "image", [BASE, layer])
    made = converted(source, places, converter, keep_owners=True, keep_xattrs=True)
    verify(made)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with mounted(made.path, folder, kind="kernel"):
        owners = [
            ((folder / name).lstat().st_uid, (folder / name).lstat().st_gid) for name in ("d", "d/f", "l")
        ]
        assert owners == [(1000, 100), (5, 6), (7, 0)]
        assert os.listxattr(folder / "caps") == ["security.capability"]


HOSTILE = {
    "dots": LayerBuilder().raw_header(b"../escaped", b"0"),
    "dots inside": LayerBuilder().raw_header(b"a/../../escaped", b"0"),
    "hard link out": LayerBuilder().hardlink("passwd", "../../etc/passwd"),
    "hard link to nothing": LayerBuilder().hardlink("passwd", "/etc/passwd"),
    "symlink loop": LayerBuilder().symlink("a", "b").symlink("b", "a").file("a/x", b"1"),
    "unknown whiteout": LayerBuilder().file("d/.wh..", b""),
    "cut short": LayerBuilder().raw(raw_header(b"f", b"0", size=10_000) + b"too little"),
    "no tar": LayerBuilder().raw(b"this is no tar at all".ljust(1024, b"!")),
}


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_end_in_one_sentence_with_nothing_outside(
    name: str, converter: str, places: dict[str, Path], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    write_layout(tmp_path / "image", [BASE, HOSTILE[name]])
    source = f"oci:{tmp_path / 'image'}"
    ended = cli("convert", source, "-o", places["out"] / "x.sqsh", "--converter", converter, places=places)
    assert ended.returncode == FormatError.exit_code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"{source}:" in ended.stderr, "the image is named"
    assert ended.stdout == ""
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "image"])


def test_links_out_of_the_root_leave_everything_outside_alone(
    places: dict[str, Path], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    layer = LayerBuilder().symlink("out", str(victim)).symlink("up", "../../../../../.." + str(victim))
    upper = LayerBuilder().file("out/new", b"x").file("up/kept", b"overwritten").whiteout("out/kept")
    made = converted(image(tmp_path / "image", [BASE, layer, upper]), places)
    verify(made)
    assert [file.name for file in victim.iterdir()] == ["kept"]
    assert (victim / "kept").read_text() == "kept"


def test_a_layer_whose_bytes_are_not_its_digests(places: dict[str, Path], tmp_path: Path) -> None:
    source = image(tmp_path / "image", [BASE])
    blob = tmp_path / "image" / "blobs" / "sha256" / source.manifest().layers[0].digest.hex
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match=r"layer 1 of oci:.* has digest"):
        converted(source, places)


def cli(*words: object, places: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "SQSHPIPE_SCRATCH": str(places["scratch"]),
        "SQSHPIPE_CACHE": str(places["cache"]),
    }
    argv = [sys.executable, "-m", "pipeline", *(str(word) for word in words)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes, as a file system of their own."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("root")
@pytest.mark.parametrize("full", ["scratch", "out"])
def test_too_little_space_is_reported_before_the_work(
    full: str, small_disk: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    source = image(
        tmp_path / "image", [BASE, LayerBuilder().file("f", os.urandom(20 << 20))], compression="none"
    )
    places = {**places, full: small_disk}
    with pytest.raises(ToolError, match=r"not enough space on .*small: 4\.2 MB free, .* missing") as caught:
        converted(source, places)
    asked_for = {"scratch": "SQSHPIPE_SCRATCH", "out": "sqshpipe store usage"}[full]
    assert asked_for in caught.value.hint
    assert list(small_disk.iterdir()) == []


@pytest.mark.needs("root")
@pytest.mark.parametrize("full", ["scratch", "out"])
def test_a_disk_that_fills_up_meanwhile(
    full: str, small_disk: Path, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image(
        tmp_path / "image", [BASE, LayerBuilder().file("f", os.urandom(20 << 20))], compression="none"
    )
    monkeypatch.setattr("pipeline.convert.mksquashfs.require_space", lambda _needs: None)
    places = {**places, full: small_disk}
    with pytest.raises(ToolError, match="no space left") as caught:
        converted(source, places)
    assert str(small_disk) in caught.value.message
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(number: signal.Signals, places: dict[str, Path], tmp_path: Path) -> None:
    """Killed while mksquashfs runs: nothing of it is left, neither file nor process."""
    layer = LayerBuilder()
    for part in range(30):
        layer.file(f"f{part}", os.urandom(1 << 20))
    write_layout(tmp_path / "image", [BASE, layer], compression="none")
    tools = tmp_path / "tools"
    tools.mkdir()
    slow = tools / "mksquashfs"  # the real one, that stays after its work until it is asked to end
    slow.write_text(
        "#!/bin/sh\n"
        'case "$1" in -version) exec /usr/bin/mksquashfs -version;; esac\n'
        '/usr/bin/mksquashfs "$@"\n'
        f"echo $$ > {tmp_path}/running\nexec sleep 60\n"
    )
    slow.chmod(0o755)
    output = places["out"] / "x.sqsh"
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SQSHPIPE_SCRATCH": str(places["scratch"]),
    }
    argv = [sys.executable, "-m", "pipeline", "convert", f"oci:{tmp_path / 'image'}", "-o", str(output)]
    argv += ["--converter", "mksquashfs"]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.1)
        process.send_signal(number)
        _, reported = process.communicate(timeout=30)
    assert process.returncode == 128 + number, reported
    assert "Traceback" not in reported
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "running").read_text()), 0)


def test_killed_outright_the_next_run_cleans_up(places: dict[str, Path], tmp_path: Path) -> None:
    """Scratch and the unfinished file beside the output, whatever name the next output has."""
    source = image(tmp_path / "image", [BASE])
    for folder in (places["scratch"], places["out"]):
        left = folder / "sqshpipe-scratch-host-1" / "root" / "usr"
        left.mkdir(parents=True)
        (left / "file").write_text("x")
        folder.joinpath("sqshpipe-scratch-host-1.lock").touch()
    verify(converted(source, places))
    assert not [path for folder in (places["scratch"], places["out"]) for path in folder.glob("sqshpipe-*")]


def test_without_root_the_result_is_the_same(places: dict[str, Path], tmp_path: Path) -> None:
    """Devices, owners, modes 000 and setuid need no privileges: the same bytes come out for nobody."""
    if not ROOT:
        pytest.skip("needs root to become somebody else")
    layer = LayerBuilder().file("su", b"1", mode=0o4755).file("none", b"2", mode=0).dir("d", mode=0, uid=5)
    layer.device("d/disk", 8, 1, block=True, mode=0o660).fifo("p").hardlink("d/su", "su").dir(
        "t", mode=0o1777
    )
    source = image(tmp_path / "image", [BASE, layer])
    mine = converted(source, places)
    for folder in (tmp_path, *places.values()):
        folder.chmod(0o777)
    for parent in [parent for parent in tmp_path.parents if not parent.stat().st_mode & 0o001]:
        parent.chmod(parent.stat().st_mode | 0o001)
    other = places["out"] / "other.sqsh"
    reported = tmp_path / "reported"
    reported.touch()
    reported.chmod(0o666)
    child = os.fork()  # all modules are loaded here: nobody may be unable to read where they are
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            convert(
                source,
                ConvertOptions(converter="mksquashfs"),
                output=other,
                scratch=places["scratch"],
                cache=places["cache"],
            )
        except BaseException as error:  # noqa: BLE001 - reported by the parent
            reported.write_text(repr(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert reported.read_text() == ""
    assert other.read_bytes() == mine.path.read_bytes()


def test_the_verbs_convert_and_verify(places: dict[str, Path], tmp_path: Path) -> None:
    layer = LayerBuilder().file("f", b"1")
    write_layout(tmp_path / "image", [BASE, layer], tag="one")
    write_layout(tmp_path / "image", [BASE, layer, LayerBuilder().file("f", b"2")], tag="two")
    source, file = f"oci:{tmp_path / 'image'}", places["out"] / "x.sqsh"
    made = cli("convert", f"{source}:one", "-o", file, places=places)
    assert (made.returncode, made.stdout) == (0, f"{file}\n"), made.stderr
    again = cli("convert", f"{source}:one", "-o", file, places=places)
    assert again.returncode == 2
    assert "--force" in again.stderr
    same = cli("verify", file, f"{source}:one", "--json", places=places)
    assert same.returncode == 0, same.stderr
    assert "content" in json.loads(same.stdout)["checks"]
    other = cli("verify", file, f"{source}:two", places=places)
    assert (other.returncode, other.stdout) == (7, "")
    assert "/f: content differs" in other.stderr
