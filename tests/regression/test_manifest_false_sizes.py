"""A manifest that claims an exabyte was answered with a disk that is too small: the manifest is bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.unpack import Preserve
from pipeline.convert.verify import described
from pipeline.errors import FormatError
from pipeline.oci.layout import open_layout
from pipeline.oci.manifest import OCI_MANIFEST, parse_manifest
from tests.regression.test_packing_blob_never_compared import (
    SHELL,
    as_layout,
    honest,
    layout_files,
    sha256,
)
from tests.support.images.images import LINUX


def claiming(folder: Path, size: int, times: int = 1) -> Path:
    """A layout whose manifest lists one layer more, of so many bytes, several times."""
    layers = [honest(SHELL, "gzip")]
    files = layout_files(layers)
    index = json.loads(files["index.json"])
    old = index["manifests"][0]["digest"]
    manifest = json.loads(files[f"blobs/{old.replace(':', '/')}"])
    config = json.loads(files[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    extra = {**manifest["layers"][0], "size": size}
    manifest["layers"] += [{**extra, "digest": sha256(b"%d" % number)} for number in range(times)]
    config["rootfs"]["diff_ids"] += [sha256(b"%d" % number) for number in range(times)]
    raw = json.dumps(config).encode()
    manifest["config"].update(digest=sha256(raw), size=len(raw))
    made = json.dumps(manifest).encode()
    index["manifests"][0].update(digest=sha256(made), size=len(made))
    files["index.json"] = json.dumps(index).encode()
    files |= {f"blobs/{sha256(data).replace(':', '/')}": data for data in (raw, made)}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("size", "times"), [(10**18, 1), ((1 << 63) - 1, 1), (100 << 40, 1), (2 << 40, 1), (300 << 30, 5)]
)
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
def test_a_size_that_cannot_be(tmp_path: Path, converter: str, size: int, times: int) -> None:
    source = open_layout(claiming(tmp_path / "image", size, times), platform=LINUX)
    options = ConvertOptions(converter=converter)  # type: ignore[arg-type]
    places = tmp_path / "x.sqsh", tmp_path / "scratch", tmp_path / "cache"
    with pytest.raises(FormatError, match=r"claims [0-9]+ bytes"):
        convert(source, options, output=places[0], scratch=places[1], cache=places[2])
    assert not (tmp_path / "x.sqsh").exists()


def test_verify_says_the_same(tmp_path: Path) -> None:
    good = as_layout(tmp_path / "good", [honest(SHELL, "gzip")])
    options = ConvertOptions(converter="native")
    made = convert(good, options, output=tmp_path / "x.sqsh", scratch=tmp_path / "s", cache=tmp_path / "c")
    source = open_layout(claiming(tmp_path / "image", 2 << 40), platform=LINUX)
    with pytest.raises(FormatError, match=r"claims [0-9]+ bytes"):
        described(made.path, source, keep=Preserve(), by_enroot=False, cache=tmp_path / "c")


def test_the_largest_that_may_be_is_read() -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(b""), "size": 1 << 44}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(b""), "size": 2}
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    assert parse_manifest(json.dumps(value).encode(), None)
    layer["size"] = (1 << 44) + 1
    with pytest.raises(FormatError, match="claims"):
        parse_manifest(json.dumps(value).encode(), None)


@pytest.mark.parametrize("size", [10**12, 1 << 40])
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
def test_a_blob_that_is_shorter_than_claimed_needs_no_room(tmp_path: Path, converter: str, size: int) -> None:
    folder = claiming(tmp_path / "image", size)
    (folder / "blobs/sha256" / sha256(b"0").partition(":")[2]).write_bytes(b"0")
    source = open_layout(folder, platform=LINUX)
    options = ConvertOptions(converter=converter)  # type: ignore[arg-type]
    places = tmp_path / "x.sqsh", tmp_path / "scratch", tmp_path / "cache"
    with pytest.raises(FormatError, match=f"layer 2 of .* ends after 1 of {size} bytes"):
        convert(source, options, output=places[0], scratch=places[1], cache=places[2])
