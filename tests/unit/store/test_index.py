"""Index and head are what they were written from, whatever happened before; a changed one is noticed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import sealed
from pipeline.store.events import Change, Event
from pipeline.store.index import head_of, read_head, read_index, write_head, write_index
from pipeline.store.state import ImageState
from tests.support.store.releases import record_for

VERSIONS = ["v1.0", "v1.1", "v1.2", "1"]
KINDS = ["promote", "rollback", "yank", "unyank", "keep", "unkeep", "hide", "unhide", "delete", "restore"]
changes = st.builds(
    Change,
    kind=st.sampled_from([*KINDS, "damaged", "repaired"]),
    version=st.sampled_from(VERSIONS),
    channel=st.sampled_from(["latest", "stable"]),
    platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
    reason=st.sampled_from(["", 'a "quoted" reason\n', "ünï"]),
)
records = st.lists(
    st.builds(
        record_for,
        st.binary(max_size=3),
        st.sampled_from(VERSIONS),
        platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
        external=st.booleans(),
    ),
    max_size=6,
)


def fold(records_of: list[object], changes_of: list[Change]) -> ImageState:
    state = ImageState(image="demo")
    for record in records_of:
        state.add(record)  # type: ignore[arg-type]
    for number, change in enumerate(changes_of, 1):
        state.apply(Event(number=number, change=change, by="me", at=f"2026-01-01T00:{number:02}:00Z"))
    return state


@settings(max_examples=150, deadline=None)
@given(records, st.lists(changes, max_size=10), st.lists(changes, max_size=4))
def test_reading_back_loses_nothing(
    records_of: list[object], before: list[Change], after: list[Change]
) -> None:
    """Folding on from an index that was read gives what folding from the beginning gives."""
    whole = fold(records_of, before + after)
    read = read_index(write_index(fold(records_of, before)), "demo")
    assert read is not None
    for number, change in enumerate(after, len(before) + 1):
        read.apply(Event(number=number, change=change, by="me", at=f"2026-01-01T00:{number:02}:00Z"))
    assert write_index(read) == write_index(whole)
    assert write_head(read) == write_head(whole)
    assert json.loads(write_index(whole))["events"] == len(before + after)
    names = {(file.stem, file.platform, file.sha256, file.published) for file in read.files()}
    assert names == {
        (stem, platform, held.sha256, whole.releases[version].state(platform) == "published")
        for stem, version, platform, held in whole.stems()
    }
    assert head_of(read) == read_head(write_head(whole), "demo")


@settings(max_examples=100, deadline=None)
@given(records, st.lists(changes, max_size=6), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_noticed(
    records_of: list[object], changes_of: list[Change], where: int, flip: int
) -> None:
    state = fold(records_of, changes_of)
    for raw, read in ((write_index(state), read_index), (write_head(state), read_head)):
        changed = bytearray(raw)
        changed[where % len(raw)] ^= flip
        found = read(bytes(changed), "demo")
        assert found is None or found == read(raw, "demo")  # white space after the checksum says nothing
        assert read(raw, "other") is None


@settings(max_examples=60, deadline=None)
@given(records, st.lists(changes, max_size=6))
def test_the_order_in_which_records_and_events_are_read_makes_no_difference(
    records_of: list[object], changes_of: list[Change]
) -> None:
    first, last = fold(records_of, changes_of), fold([], changes_of)
    for record in records_of:
        last.add(record)  # type: ignore[arg-type]
    assert write_index(first) == write_index(last)
    assert head_of(fold([], changes_of)) == head_of(first), "the head follows from the events alone"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 1}', '{"schema": 1, "image": "demo", "events": 1, "channels": []}']
)
def test_what_is_no_index(text: str) -> None:
    for raw in (text.encode(), sealed.seal(text)):
        assert read_index(raw, "demo") is None
        assert read_head(raw, "demo") is None
