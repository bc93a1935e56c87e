"""One lease of any user, with an endless number or a time before all times in it, ended every prune."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.store import leases
from pipeline.store.layout import Layout

SOUND = {"schema": 1, "sha256": "0" * 64, "uid": os.getuid(), "expires": "2030-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "change",
    [
        '"uid": 1e400',
        '"uid": -1e400',
        '"uid": NaN',
        '"uid": ' + "9" * 5000,
        '"expires": "0001-01-01T00:00:00+23:59"',
        '"expires": "9999-12-31T23:59:59-23:59"',
    ],
)
def test_it_holds_nothing_and_breaks_nothing(change: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    leases.prepare(layout)
    text = json.dumps(SOUND)
    (layout.leases / "sound.json").write_text(text)
    (layout.leases / "odd.json").write_text(text[:-1] + f", {change}}}")
    found = {lease.name: lease for lease in leases.read_all(layout)}
    odd = found.pop("odd.json", None)
    assert list(found) == ["sound.json"]
    if "expires" in change:  # a lease still, whose end the program decides
        assert odd is not None
        assert odd.expires <= time.time() + leases.LONGEST_SECONDS
    else:
        assert odd is None
