"""A plan follows from observations alone: a table of situations and what each stage would do."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.types import ConvertOptions, ImageSpec, ScanPolicy
from pipeline.image.inputs import BuildInputs
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.plan.changes import Observation, plan
from pipeline.plan.current import ReleaseFacts

OLD, NEW, IMAGE, OTHER = (Digest.of(text) for text in (b"old", b"new", b"image", b"other"))
SPEC = ImageSpec(
    name="demo",
    base=Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3"),
    platform=Platform.parse("linux/amd64"),
    dockerfile=Path("/src/Dockerfile"),
    context=Path("/src"),
)
MIRROR = dataclasses.replace(SPEC, dockerfile=None, context=None)
INPUTS = BuildInputs(
    base=OLD,
    dockerfile="d" * 64,
    context={"train.py": "-:1"},
    args={"TRANSFORMERS": "4.36.0"},
    target=None,
    platform="linux/amd64",
)


def released(version: str = "v1.0", **changes: Any) -> ReleaseFacts:
    whole = ReleaseFacts(
        version=version,
        state="published",
        source=IMAGE,
        base=OLD,
        build_key=INPUTS.key,
        inputs=INPUTS.record(),
        converter="mksquashfs",
        options={"zstd_level": 3, "block_size": 131072, "keep_owners": False, "keep_xattrs": False},
        size=1000,
        created=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )
    return dataclasses.replace(whole, **changes)


def observed(**changes: Any) -> Observation:
    whole = Observation(
        spec=SPEC,
        version="v1.0",
        base=OLD,
        locked=True,
        inputs=INPUTS,
        newest=released(),
        taken=released(),
        target=Path("/fsx/demo/v1.0.sqsh"),
    )
    return dataclasses.replace(whole, **changes)


ALL = ["build", "push", "scan", "convert", "verify", "publish"]
REBUILD = dataclasses.replace(INPUTS, base=NEW, args={"TRANSFORMERS": "4.37.0"})
LEVEL = dataclasses.replace(SPEC, convert=ConvertOptions(converter="native", zstd_level=9))

# What is observed, the stages that run, the changes, and what the problem says.
CASES: dict[str, tuple[Observation, list[str], tuple[str, ...], str]] = {
    "nothing changed": (observed(), [], (), ""),
    "nothing changed, no version asked for": (observed(version=None, taken=None), [], (), ""),
    "never released": (observed(newest=None, taken=None), ALL, ("no release yet",), ""),
    "never released, but pushed by a run that died": (
        observed(newest=None, taken=None, pushed=IMAGE),
        ["scan", "convert", "verify", "publish"],
        ("no release yet",),
        "",
    ),
    "same content under a new version": (
        observed(version="v1.1", taken=None),
        ["scan", "publish"],
        (),
        "",
    ),
    "same content under a new version, and the old one no longer resolves": (
        observed(version="v1.1", taken=None, newest=released(state="yanked")),
        ["scan", "convert", "verify", "publish"],
        (),
        "",
    ),
    "base and argument changed, a new version": (
        observed(version="v1.1", taken=None, base=NEW, inputs=REBUILD),
        ALL,
        (f"base {str(OLD)[:19]} -> {str(NEW)[:19]}", "argument TRANSFORMERS 4.36.0 -> 4.37.0"),
        "",
    ),
    "changed content under a published version": (
        observed(inputs=dataclasses.replace(INPUTS, context={"train.py": "-:2"})),
        ALL,
        ("context train.py changed",),
        "version v1.0 is published with other content; choose another version",
    ),
    "converter options changed": (
        observed(version=None, taken=None, spec=LEVEL),
        ["scan", "convert", "verify", "publish"],
        ("converter mksquashfs -> native", "zstd_level 3 -> 9"),
        "",
    ),
    "no scanner": (
        observed(newest=None, taken=None, spec=dataclasses.replace(SPEC, scan=ScanPolicy(scanner="none"))),
        ["build", "push", "convert", "verify", "publish"],
        ("no release yet",),
        "",
    ),
    "record without inputs": (
        observed(version=None, taken=None, newest=released(build_key="x", inputs={}, base=None)),
        ALL,
        ("v1.0 was made from inputs that its record does not name",),
        "",
    ),
    "mirror, nothing changed": (
        observed(spec=MIRROR, inputs=None, newest=released(source=OLD), taken=released(source=OLD)),
        [],
        (),
        "",
    ),
    "mirror, base moved": (
        observed(spec=MIRROR, inputs=None, version=None, taken=None, base=NEW, newest=released(source=OLD)),
        ["mirror", "scan", "convert", "verify", "publish"],
        (f"base {str(OLD)[:19]} -> {str(NEW)[:19]}",),
        "",
    ),
    "mirror, already in the registry": (
        observed(spec=MIRROR, inputs=None, newest=None, taken=None, pushed=OLD),
        ["scan", "convert", "verify", "publish"],
        ("no release yet",),
        "",
    ),
    "base unknown": (
        observed(base=None, inputs=None, base_problem="nvcr.io does not answer"),
        [],
        (),
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_runs_and_why(case: str) -> None:
    seen, runs, changes, problem = CASES[case]
    result = plan((seen,))
    image = result.images[0]
    assert [step.stage for step in image.steps if step.run] == runs
    assert image.changes == changes
    assert image.problem == problem
    assert result.has_changes is (None if seen.base is None else bool(runs or problem))
    assert all(step.reason for step in image.steps)
    assert image.writes == (0 if "convert" not in runs else None if seen.newest is None else 1000)
    json.dumps(result.as_json())


def test_moved_tag_is_reported_and_not_taken() -> None:
    image = plan((observed(moved_to=NEW),)).images[0]
    assert not image.has_changes
    assert str(OLD)[:19] in image.notes[0]
    assert str(NEW)[:19] in image.notes[0]
    assert "sqshpipe lock" in image.notes[0]


def test_locked_base_survives_a_registry_that_is_down() -> None:
    image = plan((observed(base_problem="nvcr.io does not answer"),)).images[0]
    assert not image.has_changes
    assert image.notes == ("nvcr.io does not answer; the locked digest is used",)


def test_json_says_what_is_published_where_and_how_much() -> None:
    seen = observed(newest=None, taken=None, base_size=5 << 30)
    data = plan((seen,)).as_json()["images"][0]
    assert data["publishes"] == "/fsx/demo/v1.0.sqsh"
    assert data["writes"] == 5 << 30
    assert data["steps"][0] == {"stage": "pin", "run": False, "reason": f"locked at {str(OLD)[:19]}"}


STRICT, LAX = ({"fail_on": level, "waivers": "a" * 16} for level in ("high", "critical"))


def test_another_scan_policy_is_a_reason_to_scan_a_new_version() -> None:
    seen = observed(version="v1.1", taken=None, newest=released(scan_policy=STRICT), scan_policy=LAX)
    (scan,) = (step for step in plan((seen,)).images[0].steps if step.stage == "scan")
    assert (scan.run, scan.reason) == (True, "v1.1 is not published; scan policy fail_on high -> critical")
    changed = {**STRICT, "waivers": None}
    level = observed(
        version=None, taken=None, newest=released(scan_policy=STRICT), spec=LEVEL, scan_policy=changed
    )
    (scan,) = (step for step in plan((level,)).images[0].steps if step.stage == "scan")
    assert scan.reason.endswith("; waivers changed")


def test_another_scan_policy_is_reported_for_what_is_published_and_changes_nothing_there() -> None:
    image = plan((observed(taken=released(scan_policy=STRICT), scan_policy=LAX),)).images[0]
    assert not image.has_changes
    (note,) = image.notes
    assert note.startswith("scan policy fail_on high -> critical since v1.0 was published: ")
    assert "sqshpipe store rescan demo" in note
    assert plan((observed(scan_policy=LAX),)).images[0].notes == ()  # an older record does not say


def test_without_a_scanner_no_scan_is_promised() -> None:
    bare = dataclasses.replace(SPEC, scan=ScanPolicy(scanner="none"))
    image = plan((observed(version="v1.1", taken=None, spec=bare),)).images[0]
    assert not any(step.run for step in image.steps if step.stage == "scan")


def test_what_is_not_known_is_neither_a_change_nor_none() -> None:
    unknown = observed(base=None, inputs=None, base_problem="nvcr.io does not answer")
    made = plan((unknown,))
    assert (made.has_changes, made.unknown) == (None, "nvcr.io does not answer")
    assert made.as_json()["changes"] is None
    assert made.as_json()["images"][0]["changes"] is None


def test_a_registry_of_ours_that_is_down_hides_no_known_change() -> None:
    made = plan(
        (
            observed(
                version="v1.1",
                taken=None,
                base=NEW,
                inputs=REBUILD,
                registry_problem="registry.example does not answer",
            ),
        )
    )
    assert (made.has_changes, made.unknown) == (True, "registry.example does not answer")
    build = next(step for step in made.images[0].steps if step.stage == "build")
    assert build.reason.endswith("unless the registry has it")
