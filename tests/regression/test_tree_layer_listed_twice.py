"""A layer that a manifest lists several times was counted once, its further diff_ids not looked at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.convert.tree import read_tree
from pipeline.errors import FormatError
from pipeline.oci.entry import Limits
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from tests.support.images.layers import LayerBuilder, write_layout

LINUX = Platform(os="linux", architecture="amd64")


def test_it_is_counted_as_often_as_it_is_merged(tmp_path: Path) -> None:
    layer = LayerBuilder().file("a").file("b")
    write_layout(tmp_path, [layer, layer, layer])
    with pytest.raises(FormatError, match="more than 5 members together"):
        read_tree(open_layout(tmp_path, platform=LINUX), limits=Limits(max_entries=5), task=NO_TASK)
    assert read_tree(open_layout(tmp_path, platform=LINUX), limits=Limits(max_entries=6), task=NO_TASK)


def test_a_diff_id_that_lies_is_noticed_at_any_place(tmp_path: Path) -> None:
    layer = LayerBuilder().file("a")
    write_layout(tmp_path, [layer, layer])
    index = json.loads((tmp_path / "index.json").read_text())
    blobs = tmp_path / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    config["rootfs"]["diff_ids"][1] = "sha256:" + "0" * 64

    def put(value: object) -> dict[str, object]:
        raw = json.dumps(value).encode()
        name = hashlib.sha256(raw).hexdigest()
        (blobs / name).write_bytes(raw)
        return {"digest": f"sha256:{name}", "size": len(raw)}

    manifest["config"].update(put(config))
    index["manifests"][0].update(put(manifest))
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="unpacked bytes are"):
        read_tree(open_layout(tmp_path, platform=LINUX), task=NO_TASK)
