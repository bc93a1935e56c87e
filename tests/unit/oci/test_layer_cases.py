"""The table of layer cases, through the reader and the merge."""

from __future__ import annotations

import io

import pytest

from pipeline.oci.digest import Digest
from pipeline.oci.layer import decompressed, read_layer
from pipeline.oci.merge import Tree, merge
from tests.support.images.layer_cases import LAYER_CASES, Expected, LayerCase
from tests.support.images.layers import compressed


def merged(case: LayerCase, *, background: bool = False) -> tuple[Tree, dict[tuple[int, int], bytes]]:
    """The tree and the contents by (layer, index)."""
    contents: dict[tuple[int, int], bytes] = {}
    layers = []
    for number, (builder, compression) in enumerate(zip(case.layers, case.compressions, strict=True)):
        tar = builder.tar()
        stream = decompressed(io.BytesIO(compressed(tar, compression)), compression)
        entries = []
        with read_layer(stream, diff_id=Digest.of(tar), background=background) as layer:
            for index, (entry, content) in enumerate(layer):
                contents[number, index] = content.read()
                entries.append(entry)
        assert stream.compression == compression
        layers.append(entries)
    return merge(layers), contents


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layers_merge_to_the_tree(case: LayerCase) -> None:
    tree, contents = merged(case, background=True)
    found = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, node in tree.items():
        groups.setdefault((node.layer, node.index), []).append(path)
        content = node.entry.target or contents.get((node.layer, node.index), b"")
        entry = node.entry
        found[path] = Expected(
            kind=entry.kind, mode=entry.mode, content=content, device=(entry.major, entry.minor)
        )
    expected_groups: dict[str, list[bytes]] = {}
    plain = {}
    for path, wanted in case.tree.items():
        if wanted.group is not None:
            expected_groups.setdefault(wanted.group, []).append(path)
        plain[path] = Expected(
            kind=wanted.kind, mode=wanted.mode, content=wanted.content, device=wanted.device
        )
    root = found.pop(b"")
    assert root.mode == 0o755
    assert found == plain
    several = sorted(paths for inode, paths in groups.items() if inode[0] >= 0 and len(paths) > 1)
    assert several == sorted(sorted(paths) for paths in expected_groups.values())
    for paths in several:
        assert [tree[path].link_to for path in paths] == [None] + [paths[0]] * (len(paths) - 1)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_iteration_goes_into_the_depth_with_names_sorted(case: LayerCase) -> None:
    tree, _ = merged(case)
    paths = list(tree)
    assert paths == sorted(paths, key=lambda path: path.split(b"/") if path else [])
    assert all(path.rpartition(b"/")[0] in tree for path in paths)
