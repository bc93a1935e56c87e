"""Attributes of a megabyte a member, and deep folders without entries, took memory without a bound."""

from __future__ import annotations

import io

import pytest

from pipeline.errors import FormatError
from pipeline.oci.digest import Digest
from pipeline.oci.entry import Entry, EntryKind, Limits
from pipeline.oci.layer import read_layer
from pipeline.oci.merge import merge
from tests.support.images.hostile_tars import after, record


def test_attributes_of_a_layer_are_bounded() -> None:
    tar = after(record(b"SCHILY.xattr.user.x", b"v" * 10_000)).tar()
    with (
        read_layer(io.BytesIO(tar), diff_id=Digest.of(tar), limits=Limits(max_metadata=9_000)) as layer,
        pytest.raises(FormatError, match="names and attributes of a layer"),
    ):
        layer.entries()
    with read_layer(io.BytesIO(tar), diff_id=Digest.of(tar), limits=Limits(max_metadata=11_000)) as layer:
        assert len(layer.entries()) == 1


def test_folders_without_entries_are_bounded_by_their_names() -> None:
    entries = [Entry(b"%d" % number + b"/d" * 1990 + b"/f", EntryKind.FILE) for number in range(500)]
    with pytest.raises(FormatError, match="leave out more than"):
        merge([entries])
