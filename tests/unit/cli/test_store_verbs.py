"""Verbs of the store and of its releases: import, list, history, yank, dry runs, metrics, leases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.errors import ConfigError
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.store import releases
from tests.unit.cli.test_squashfs_verbs import image as squashfs  # noqa: F401 - a fixture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty store that `store create` made."""
    done = sqshpipe("store", "create", tmp_path / "store")
    assert done.stdout == f"{tmp_path / 'store'}\n"
    assert (tmp_path / "store" / "leases").stat().st_mode & 0o7777 == 0o1777
    return tmp_path / "store"


@pytest.fixture
def filled(root: Path) -> Path:
    """demo:v1 to v3, of which v2 is yanked, v3 is `latest` and v1 `stable`; other:v1."""
    store = Store(root)
    for number in (1, 2, 3):
        releases.publish(store, f"v{number}", created=f"2026-01-0{number}T00:00:00Z")
    releases.publish(store, "v1", b"other", image="other")
    store.promote("demo:v1", "stable")
    store.mark("demo:v2", "yank", reason="bad")
    return root


def sqshpipe(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def lines(*words: object) -> list[str]:
    done = sqshpipe(*words)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_store_that_exists_stays(filled: Path) -> None:
    assert lines("store", "create", filled) == [str(filled)]
    assert lines("resolve", "demo", "--store", filled) == [str(filled / "demo" / "v3.sqsh")]


def test_good_files_are_imported_and_the_others_listed(squashfs: Path, root: Path) -> None:
    good, bad, absent = (squashfs.with_name(name) for name in ("demo-v1.sqsh", "demo.sqsh", "x-v9.sqsh"))
    good.write_bytes(squashfs.read_bytes())
    bad.write_bytes(squashfs.read_bytes())
    words = ["store", "import", good, bad, absent, "--store", root]
    dry = sqshpipe(*words, "--dry-run")
    assert isinstance(dry.exception, ConfigError)
    assert dry.stdout.startswith(f"{good} -> demo:v1\n")
    assert Store(root).images() == []
    done = sqshpipe(*words)
    assert isinstance(done.exception, ConfigError)
    assert "demo.sqsh does not say image and version" in str(done.exception)
    assert "--as NAME:VERSION" in done.exception.hint
    assert "x-v9.sqsh does not exist" in done.stderr
    found = json.loads(sqshpipe("show", "demo:v1", "--store", root, "--json").stdout)
    assert found["scan"]["status"] == "external"
    assert lines("store", "import", bad, "--as", "demo:v2", "--store", root) == [
        str(root / "demo" / "v2.sqsh")
    ]
    assert sqshpipe("store", "import", bad, "--as", "demo", "--store", root).exception
    assert bad.exists()
    assert sqshpipe("store", "import", good, "--dry-run", "--store", root).exit_code == 0
    assert sqshpipe("store", "import", good, "--as", "new:v1", "--dry-run", "--store", root).exit_code == 10


def test_move_keeps_the_bytes_where_they_are(squashfs: Path, root: Path) -> None:
    inode, content = squashfs.stat().st_ino, squashfs.read_bytes()
    words = ["store", "import", squashfs, "--as", "demo:v1", "--move", "--store", root]
    path = Path(lines(*words)[0])
    assert (path.stat().st_ino, path.read_bytes()) == (inode, content)
    assert not squashfs.exists()
    assert path.stat().st_nlink == 1


def test_a_move_that_fails_leaves_the_file(squashfs: Path, root: Path) -> None:
    Store(root)
    releases.publish(Store(root), "v1")  # has other content
    words = ["store", "import", squashfs, "--as", "demo:v1", "--move", "--store", root]
    assert sqshpipe(*words).exception
    assert squashfs.stat().st_nlink == 1
    os.link(squashfs, squashfs.with_name("second name"))
    refused = sqshpipe("store", "import", squashfs, "--as", "demo:v2", "--move", "--store", root)
    assert "cannot be moved" in str(refused.exception)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["demo:v3", "demo:v1", "other:v1"]),
        (["demo"], ["demo:v3", "demo:v1"]),
        (["d*", "other"], ["demo:v3", "demo:v1", "other:v1"]),
        (["demo:v[12]", "--any-state"], ["demo:v2", "demo:v1"]),
        (["--channel", "stable"], ["demo:v1"]),
        (["demo:stable"], ["demo:v1"]),
        (["--limit", "1"], ["demo:v3", "other:v1"]),
    ],
)
def test_list_takes_patterns_channel_and_limit(words: list[str], expected: list[str], filled: Path) -> None:
    shown = lines("list", *words, "--store", filled)
    assert [line.split()[0] for line in shown[1:]] == expected


def test_list_says_how_many_it_hides(filled: Path) -> None:
    done = sqshpipe("list", "demo", "--limit", "1", "--store", filled)
    assert done.stderr.splitlines() == [
        "1 not shown, because they no longer resolve: --any-state shows them",
        "1 older not shown: --limit 0 shows them",
    ]
    assert sqshpipe("list", "--any-state", "--store", filled).stderr == ""


def test_history_shows_what_happened_and_who_did_it(filled: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(sqshpipe("history", "demo", "--store", filled, "--json").stdout)
    published = [row["version"] for row in rows if row["what"] == "publish"]
    assert sorted(published) == ["v1", "v2", "v3"]
    yank = next(row for row in rows if row["what"] == "yank")
    assert (yank["version"], yank["reason"]) == ("v2", "bad")
    assert yank["by"]
    stable = json.loads(sqshpipe("history", "demo:stable", "--store", filled, "--json").stdout)
    assert [(row["what"], row["version"]) for row in stable] == [("promote", "v1")]
    assert lines("history", "demo", "--store", filled)[0].split() == [
        *("WHEN", "WHAT", "VERSION", "CHANNEL", "BY", "REASON")
    ]
    assert sqshpipe("history", "absent", "--store", filled).exception


def test_yank_says_where_the_channels_went(filled: Path) -> None:
    done = sqshpipe("yank", "demo:latest", "--store", filled)
    assert done.stdout == "demo:v3\n"
    assert "demo:latest now names v1, before v3" in done.stderr
    assert "stable" not in done.stderr


def test_a_dry_run_changes_nothing_and_exits_with_10(filled: Path, tmp_path: Path) -> None:
    prune = ["store", "prune", "--no-slurm", "--keep", "1", "--grace", "0", "--store", filled]
    lines("store", "create", tmp_path / "copy")
    for words in (prune, ["store", "sync", filled, tmp_path / "copy"]):
        before = sorted(path for path in tmp_path.rglob("*"))
        assert sqshpipe(*words, "--dry-run").exit_code == 10
        assert sorted(path for path in tmp_path.rglob("*")) == before
        assert sqshpipe(*words).exit_code == 0
        assert sqshpipe(*words, "--dry-run").exit_code == 0


def test_leases_are_made_listed_and_dropped(filled: Path) -> None:
    (made,) = lines("store", "lease", "create", "demo:v1", "--store", filled)
    assert lines("store", "lease", "list", "--store", filled)[1].startswith(Path(made).name)
    assert lines("store", "lease", "drop", made, "--store", filled) == [made]
    assert lines("store", "lease", "list", "--store", filled) == []


def test_metrics_are_gauges_of_what_is_there(filled: Path) -> None:
    lines("store", "scrub", "--store", filled)
    text = lines("store", "metrics", "--store", filled)
    values = dict(line.rsplit(" ", 1) for line in text if not line.startswith("#"))
    assert values['sqshpipe_store_releases{image="demo",state="published"}'] == "2"
    assert values['sqshpipe_store_releases{image="demo",state="yanked"}'] == "1"
    assert values["sqshpipe_store_bytes"] == str(len("v1v2v3other"))
    assert (
        float(values['sqshpipe_store_channel_created_timestamp_seconds{image="demo",channel="stable"}']) > 1e9
    )
    assert float(values["sqshpipe_store_scrubbed_timestamp_seconds"]) > 1e9


def test_a_release_can_be_looked_into_by_its_name(squashfs: Path, root: Path) -> None:
    lines("store", "import", squashfs, "--as", "demo:v1", "--store", root)
    assert lines("squashfs", "ls", "demo:v1", "--store", root) == lines("squashfs", "ls", squashfs)


def test_packs_that_would_be_deleted_stay_in_a_dry_run(squashfs: Path) -> None:
    env = {"SQSHPIPE_CACHE": str(squashfs.parent / "cache")}
    words = ["cache", "prune", "--max-size", "0"]
    dry = CliRunner().invoke(app, [*words, "--dry-run", "--json"], env=env)
    assert (dry.exit_code, len(json.loads(dry.stdout)["removed"])) == (10, 1)
    assert CliRunner().invoke(app, words, env=env).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--dry-run"], env=env).exit_code == 0
