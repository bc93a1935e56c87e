"""Tables and charts of the documents, written from bench/results/*.json so that they never differ from it.

    python -m bench.figures [--check]

Text between `<!-- figures: NAME -->` and `<!-- end -->` of docs/benchmarks.md and the READMEs is replaced,
and the charts in docs/figures/. With --check nothing is written, and the exit code is 1 when something is out
of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import tables
from bench.drawing import Bar, Panel, bars, panels
from bench.measuring import RESULTS, median

ROOT = Path(__file__).resolve().parents[1]
CHARTS = ROOT / "docs" / "figures"
DOCS = ROOT / "docs"
PAGES = (DOCS / "benchmarks.md", DOCS / "how-to" / "data.md", ROOT / "README.md", ROOT / "README.ko.md")
_PART = re.compile(r"(<!-- figures: ([a-z_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_AXES = {"megabytes": "MB of files", "files": "files", "layers": "layers", "cores": "cores"}

Found = Mapping[str, Any]


def results(folder: Path = RESULTS) -> dict[str, Found]:
    """Every result that is there, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def charts(found: Mapping[str, Found]) -> dict[str, str]:
    """File names with the SVG that belongs in them."""
    drawn = {}
    if outcome := found.get("convert"):
        rows = sorted(outcome["rows"], key=lambda row: median(row, "seconds"))
        drawn["convert.svg"] = bars(
            "From an OCI image to a .sqsh",
            f"{tables.image_words(outcome['image'])}; median of {outcome['rounds']}, thin line: spread; "
            "hollow: a part of the work",
            [_bar(row) for row in rows],
        )
    if outcome := found.get("growth"):
        drawn["growth.svg"] = panels(
            "How the time grows",
            f"Median of {outcome['rounds']} rounds; below each chart stand the values of what grows",
            [_panel(outcome, by) for by in _AXES],
        )
    return drawn


def _bar(row: Found) -> Bar:
    times = [run["seconds"] for run in row["runs"]]
    return Bar(
        name=row["way"],
        value=median(row, "seconds"),
        least=min(times),
        most=max(times),
        ours=row["way"].startswith("sqshpipe"),
        floor=row.get("floor", False),
    )


def _panel(outcome: Found, by: str) -> Panel:
    points = [point for point in outcome["points"] if point["by"] == by]
    names = [row["way"] for row in points[0]["rows"]] if points else []
    lines = {
        name: [
            median(next(row for row in point["rows"] if row["way"] == name), "seconds") for point in points
        ]
        for name in names
    }
    return Panel(label=f"by {_AXES[by]}", values=[_value(point) for point in points], lines=lines)


def _value(point: Found) -> int:
    return round(point["image"]["bytes"] / 1e6 if point["by"] == "megabytes" else point["value"])


PARTS: dict[str, Callable[[Mapping[str, Found]], str]] = {
    "convert": lambda found: tables.convert(found["convert"]),
    "growth": lambda found: tables.growth(found["growth"]),
    "publish": lambda found: tables.compared(found["publish"]),
    "plan": lambda found: tables.plan(found["plan"]),
    "start": lambda found: tables.start(found["start"]),
    "store": lambda found: tables.store(found["store"]),
    "importer": lambda found: tables.importer(found["importer"]),
    "mirror": lambda found: tables.mirror(found["mirror"]),
    "refresh": lambda found: tables.refresh(found["refresh"]),
    "zstd_layers": lambda found: tables.zstd_layers(found["zstd_layers"]),
    "small_files": lambda found: tables.small_files(found["small_files"]),
    "node": lambda found: tables.node(found["node"]),
    "difference": lambda found: tables.difference(found["difference"]),
    "native": lambda found: tables.native(found["native"]),
    "from_store": lambda found: tables.goals(found["from_store"]),
    "verdict": lambda found: tables.goals(found["verdict"]),
    "native_memory": lambda found: tables.points(found["native_memory"]),
    "native_synthetic": lambda found: tables.points(found["native_synthetic"]),
    "readme": lambda found: tables.readme(found["convert"], korean=False),
    "readme ko": lambda found: tables.readme(found["convert"], korean=True),
}
_NEEDS = {"readme": "convert", "readme ko": "convert"}


def page(text: str, found: Mapping[str, Found]) -> str:
    """`text` with every part written anew; one without a result says so."""

    def part(match: re.Match[str]) -> str:
        name = match[2]
        source = _NEEDS.get(name, name)
        if source not in found:
            made = "아직 측정하지 않았습니다." if name.endswith(" ko") else "Not measured yet."
        else:
            try:
                made = PARTS[name](found)
            except (KeyError, TypeError, AttributeError, IndexError):
                made = (
                    f"Written by another version of the benchmark: `python -m bench {source}` measures anew."
                )
        return f"{match[1]}{made.rstrip()}\n{match[3]}"

    return _PART.sub(part, text)


def wanted(folder: Path = RESULTS) -> dict[Path, str]:
    """Every file that is written from the results, with what has to be in it."""
    found = results(folder)
    files = {CHARTS / name: svg for name, svg in charts(found).items()}
    return {**files, **{path: page(path.read_text(encoding="utf-8"), found) for path in PAGES}}


def late() -> list[str]:
    """Names of files that are out of date."""
    return [
        str(path.relative_to(ROOT))
        for path, text in wanted().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def write() -> None:
    """Bring all up to date."""
    CHARTS.mkdir(exist_ok=True)
    for path, text in wanted().items():
        path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        write()
        return 0
    names = late()
    if names:
        print(f"out of date: {', '.join(names)}; run: python -m bench.figures", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
