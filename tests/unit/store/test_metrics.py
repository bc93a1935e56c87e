"""What `store metrics` writes, read by Prometheus' own parsers; dashboard and rules ask for nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from pipeline.notify import metrics as of_a_run
from pipeline.store import leases, scrub
from pipeline.store.metrics import prometheus
from pipeline.store.record import Release
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.store.releases import new_store, publish, record_for

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring"
OF_OTHERS = {"node_textfile_mtime_seconds"}
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions of demo, of which the older is damaged, and a lease on the newer."""
    store = new_store(tmp_path / "store")
    old = publish(store, "v1.1")
    publish(store, "v1.2")
    old.path.chmod(0o644)
    old.path.write_bytes(b"xx")
    scrub.scrub(store.layout)
    leases.take(store.layout, store.resolve("demo:v1.2"), seconds=60)
    return store


def parsed(text: str) -> Values:
    found: Values = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(values: Values, name: str, **labels: str) -> float:
    return values[f"sqshpipe_store_{name}", frozenset(labels.items())]


def test_the_parser_of_prometheus_reads_every_fact(store: Store) -> None:
    values = parsed(prometheus(store))
    assert value(values, "releases", image="demo", state="published") == 1
    assert value(values, "releases", image="demo", state="damaged") == 1
    assert value(values, "damaged_releases") == 1
    assert value(values, "leases") == 1
    assert value(values, "leases_expired") == 0
    assert value(values, "unreadable_images") == 0
    assert value(values, "scrubbed_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    made = value(values, "channel_created_timestamp_seconds", image="demo", channel="latest")
    assert made == 1767225602  # 2026-01-01T00:00:02Z


def test_when_a_channel_was_scanned_is_what_its_record_says(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    scan = {"status": "passed", "scanner": "ecr", "completed_at": "2026-01-02T00:00:00Z"}
    for version, scanned in (("v1", scan), ("v2", {**scan, "completed_at": "nonsense"})):
        (tmp_path / version).write_text(version)
        record = dataclasses.replace(record_for(version.encode(), version), scan=scanned)
        store.publish(record, tmp_path / version, channels=["latest" if version == "v1" else "other"])
    values = parsed(prometheus(store))
    assert value(values, "channel_scanned_timestamp_seconds", image="demo", channel="latest") == 1767312000
    assert len([name for name, _ in values if name.endswith("scanned_timestamp_seconds")]) == 1


def test_from_when_on_nobody_watches_is_there_where_it_is_known(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Inspector says is in tests/unit/scan/test_watch.py."""
    from datetime import date

    from pipeline.scan import watch

    asked = []

    def of_releases(releases: Iterable[Release]) -> list[tuple[Release, watch.Watch]]:
        asked.extend(releases)
        return [(one, watch.Watch(unwatched_from=date(2026, 3, 1), advice="")) for one in asked]

    monkeypatch.setattr(watch, "of_releases", of_releases)
    words = ["store", "metrics", "--store", str(store.root)]
    assert "unwatched_timestamp_seconds{" not in CliRunner().invoke(app, words).stdout
    assert asked == []
    values = parsed(CliRunner().invoke(app, [*words, "--ask-ecr"]).stdout)
    assert value(values, "channel_unwatched_timestamp_seconds", image="demo", channel="latest") == 1772323200
    assert [one.version for one in asked] == ["v1.2"]


def test_an_empty_store_has_facts_too(tmp_path: Path) -> None:
    values = parsed(prometheus(new_store(tmp_path / "store")))
    assert value(values, "bytes") == value(values, "damaged_releases") == value(values, "leases") == 0


def test_the_file_is_replaced_whole(store: Store, tmp_path: Path) -> None:
    """A collector that reads meanwhile sees the old file or the new one: never half of one."""
    file = tmp_path / "facts.prom"
    words = ["store", "metrics", "--store", str(store.root), "-o", str(file)]
    assert CliRunner().invoke(app, words).exit_code == 0
    with file.open() as before:
        assert CliRunner().invoke(app, words).exit_code == 0
        assert file.stat().st_ino != Path(f"/proc/self/fd/{before.fileno()}").stat().st_ino
        assert parsed(before.read()).keys() == parsed(file.read_text()).keys()
    assert [each.name for each in tmp_path.glob("*.prom*")] == ["facts.prom"]
    assert file.stat().st_mode & 0o777 == 0o644


def _asked() -> set[str]:
    """The names of metrics in the expressions of the dashboard and the rules."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    texts += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return set(re.findall(r"\b(?:sqshpipe|node)_\w+", " ".join(texts)))


def test_dashboard_and_rules_ask_for_what_is_written(store: Store) -> None:
    stages = [("pin", "done", 1.0, 1)]
    known = prometheus(store, unwatched={"demo:v1.2": 1.0})
    written = {name for name, _ in parsed(known)} | {"sqshpipe_store_channel_scanned_timestamp_seconds"}
    written |= {name for name, _ in parsed(of_a_run.prometheus(of_a_run.facts_of("demo", "v1", 0, stages)))}
    assert _asked() - OF_OTHERS <= written


def test_the_dashboard_is_one_that_grafana_can_load() -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert board["uid"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"${source}"}
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_facts_and_rules(store: Store) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=prometheus(store), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rules = ["promtool", "check", "rules", str(MONITORING / "alerts.yml")]
    done = subprocess.run(rules, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
