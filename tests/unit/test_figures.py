"""The figures of the documents are those of bench/results, and say where a peer is better."""

from __future__ import annotations

import copy
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import figures, tables
from bench.drawing import Bar, Panel, bars, panels


def _row(way: str, *seconds: float, cpu: float = 1.0, size: int = 100) -> dict[str, Any]:
    run = {"cpu": cpu, "peak": 50_000_000, "written": 9_000_000, "size": size}
    return {"way": way, "note": "", "runs": [{"seconds": one, **run} for one in seconds]}


CONVERT: dict[str, Any] = {
    "date": "2026-11-22",
    "command": "python -m bench --size small convert",
    "size": "small",
    "rounds": 3,
    "machine": {"cpu": "A processor", "cores": 2, "memory_gb": 8, "load_1min_before": 0.1},
    "image": {"bytes": 60_000_000, "files": 1234, "layers": 7},
    "left_out": {"enroot import": "enroot is not installed"},
    "rows": [
        _row("sqshpipe native", 3.0, 2.0, 4.0),
        _row("sqshpipe native, top layer changed", 1.0),
        _row("umoci, mksquashfs", 6.0, cpu=0.5),
        _row("a <fast> peer", 1.5, size=90),
    ],
}


def test_documents_and_charts_are_those_of_the_results() -> None:
    assert figures.late() == [], "run: python -m bench.figures"


def test_a_part_is_replaced_between_its_marks_and_nothing_else() -> None:
    text = "before\n<!-- figures: convert -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    made = figures.page(text, {"convert": CONVERT})
    assert made.startswith("before\n<!-- figures: convert -->\n60 MB in 1,234 real files and 7 gzip layers;")
    assert made.endswith("\n<!-- end -->\nafter <!-- end -->\n")
    assert "old" not in made
    assert figures.page(made, {"convert": CONVERT}) == made
    assert "Not measured yet." in figures.page(text, {})
    assert "아직 측정하지 않았습니다." in figures.page(text.replace("convert", "readme ko"), {})


def test_medians_spreads_ratios_and_what_was_left_out_are_reported() -> None:
    made = tables.convert(CONVERT)
    assert "| **sqshpipe native** | 3.0 s | 2.0 s to 4.0 s | 1.00 |" in made
    assert "| umoci, mksquashfs | 6.0 s | 6.0 s to 6.0 s | 2.00 | 500 ms |" in made
    assert "enroot import: enroot is not installed" in made
    assert "load before the first round: 0.1" in made


def test_it_says_where_a_peer_is_better_and_only_there() -> None:
    reported = tables.better(CONVERT)
    assert "- quicker: a <fast> peer (0.50)" in reported
    assert "- less CPU: umoci, mksquashfs (0.50)" in reported
    assert "- a smaller file: a <fast> peer (0.90)" in reported
    assert "written" not in reported
    slow = copy.deepcopy(CONVERT)
    slow["rows"] = slow["rows"][:2]
    assert tables.better(slow).startswith("No peer")


def test_a_peer_is_compared_with_what_has_the_same_start() -> None:
    reported = copy.deepcopy(CONVERT)
    reported["rows"] += [
        _row("sqshpipe native, from the registry", 5.0),
        _row("enroot import", 4.0),
        _row("enroot import, top layer changed", 2.0),
        {**_row("mksquashfs alone", 0.1), "floor": True},
    ]
    better = tables.better(reported)
    assert "enroot import (0.80)" in better, "beside what reads the same registry"
    assert "top layer changed (" not in better, "2.0 s beside 1.0 s, not beside 3.0 s from nothing"
    assert "alone" not in better, "nobody can choose a part of the work"


@pytest.mark.parametrize("korean", [False, True])
def test_the_readme_compares_from_nothing_and_after_a_change(korean: bool) -> None:
    reported = copy.deepcopy(CONVERT)
    reported["rows"] += [
        _row("enroot's steps", 9.0),
        _row("enroot's steps, top layer changed", 5.0),
        {**_row("mksquashfs alone", 0.1), "floor": True},
    ]
    made = tables.readme(reported, korean=korean)
    assert "| **sqshpipe native** | 3.0 s | 1.00 | 1.0 s | 1.00 |" in made
    assert "| enroot's steps | 9.0 s | 3.00 | 5.0 s | 5.00 |" in made
    assert "| umoci, mksquashfs | 6.0 s | 2.00 | 6.0 s | 6.00 |" in made, "keeps nothing between runs"
    assert "alone" not in made
    assert "make bench SIZE=small" in made
    assert "2026-11-22, A processor, 2 cores, 8 GB" in made
    assert "a <fast> peer (0.50)" in made
    reported["rows"] = reported["rows"][:2]
    assert ("더 나은 도구는 없었습니다" if korean else "No peer was better") in tables.readme(
        reported, korean=korean
    )


def test_points_are_reported_in_the_unit_that_they_have() -> None:
    points = [{"image_megabytes": 300, "peak_bytes": 131_000_000, "inodes": 10_101}]
    made = tables.points({"points": points})
    assert "| 300 | 131 MB | 10,101 |" in made


def test_charts_are_svg_that_stays_inside_its_panel() -> None:
    drawn = figures.charts({"convert": CONVERT})["convert.svg"]
    root = ET.fromstring(drawn)
    assert "a <fast> peer" in "".join(root.itertext())
    width = float(root.attrib["width"])
    for each in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(each.get("x", "0")) + float(each.get("width", "0")) <= width
    ours = [each for each in root.iter() if each.get("class") == "ours"]
    assert len(ours) == 2
    assert "prefers-color-scheme:dark" in drawn


def test_a_chart_of_nothing_and_of_zero_is_drawn() -> None:
    ET.fromstring(bars("t", "s", []))
    ET.fromstring(bars("t", "s", [Bar(name="a", value=0, least=0, most=0, ours=True)]))
    ET.fromstring(panels("t", "s", [Panel(label="x", values=[1], lines={"a": [0.0]})]))
