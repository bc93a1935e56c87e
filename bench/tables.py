"""Tables of the documents: each function takes one result as it is kept and gives Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.drawing import seconds
from bench.measuring import median

Found = Mapping[str, Any]

OURS, CHANGED = "sqshpipe native", "sqshpipe native, top layer changed"


def where(told: Found) -> str:
    """Date and machine in a line."""
    machine = told.get("machine", {})
    words = [
        str(told.get("date", "")),
        str(machine.get("cpu", "")),
        f"{machine['cores']} cores" if "cores" in machine else "",
        f"{machine['memory_gb']} GB" if "memory_gb" in machine else "",
        str(machine.get("file_system", "")),
    ]
    return ", ".join(word for word in words if word)


def image_words(image: Found) -> str:
    """An image in a line."""
    return (
        f"{image['bytes'] / 1e6:,.0f} MB in {image['files']:,} real files and {image['layers']} gzip layers"
    )


def _signature(told: Found, about: str = "") -> str:
    """What was measured by which command, when, on what, and how busy that was."""
    load = told.get("machine", {}).get("load_1min_before", told.get("load_1min", told.get("load")))
    cores = told.get("cores", told.get("processors"))
    words = [
        about.strip().removesuffix("."),
        f"`{told['command']}`" if "command" in told else "",
        f"median of {told['rounds']} rounds in turn" if "rounds" in told else "",
        where(told) or (f"{cores} cores" if cores else ""),
        f"load before the first round: {_load(load)}" if load is not None else "",
    ]
    return "; ".join(word for word in words if word) + "."


def _load(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _spread(row: Found) -> str:
    times = [run["seconds"] for run in row["runs"]]
    return f"{seconds(min(times))} to {seconds(max(times))}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB" if value >= 10e6 else f"{value / 1e6:.1f} MB"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _named(told: Found) -> dict[str, Found]:
    return {row["way"]: row for row in told["rows"]}


def convert(told: Found) -> str:
    """All ways, quickest first, and in which respects a peer is better."""
    base = _named(told)[OURS]
    rows = [
        (
            f"**{row['way']}**" if row["way"].startswith("sqshpipe") else row["way"],
            seconds(median(row, "seconds")),
            _spread(row),
            _ratio(median(row, "seconds") / median(base, "seconds")),
            seconds(median(row, "cpu")),
            _megabytes(max(run["peak"] for run in row["runs"])),
            _megabytes(median(row, "written")),
            _megabytes(row["runs"][-1]["size"]),
            row["note"],
        )
        for row in sorted(told["rows"], key=lambda row: median(row, "seconds"))
    ]
    head = (
        "way",
        "median",
        "spread",
        "times native",
        "CPU",
        "peak memory",
        "written",
        ".sqsh",
        "what it does",
    )
    left = "; ".join(f"{name}: {why}" for name, why in told["left_out"].items())
    return (
        f"{_signature(told, image_words(told['image']) + '. ')}\n\n![bars](figures/convert.svg)\n\n"
        f"{_grid(head, rows)}\n{better(told)}\n" + (f"\nLeft out: {left}.\n" if left else "")
    )


def better(told: Found) -> str:
    """Where a peer beats `sqshpipe native` from nothing, by at least 3 %."""
    base = _named(told)[OURS]
    peers = [row for row in told["rows"] if not row["way"].startswith("sqshpipe")]
    lines = []
    for word, value in (
        ("quicker", lambda row: median(row, "seconds")),
        ("less CPU", lambda row: median(row, "cpu")),
        ("less memory", lambda row: max(run["peak"] for run in row["runs"])),
        ("fewer bytes written", lambda row: median(row, "written")),
        ("a smaller file", lambda row: row["runs"][-1]["size"]),
    ):
        ahead = [(row["way"], value(row) / value(base)) for row in peers if value(row) < 0.97 * value(base)]
        if ahead:
            told_names = ", ".join(
                f"{name} ({_ratio(ratio)})" for name, ratio in sorted(ahead, key=lambda one: one[1])
            )
            lines.append(f"- {word}: {told_names}")
    if not lines:
        return "No peer is better than `sqshpipe native` from nothing in any of these columns."
    return (
        "**Where a peer is better** than `sqshpipe native` from nothing, as a part of its figure:\n\n"
        + "\n".join(lines)
    )


def growth(told: Found) -> str:
    """One table, a row a point."""
    names = [row["way"] for row in told["points"][0]["rows"]]
    peer = next((name for name in names if not name.startswith("sqshpipe")), None)
    rows = []
    for point in told["points"]:
        image, found = point["image"], {row["way"]: median(row, "seconds") for row in point["rows"]}
        cores = f"{point['value']}" if point["by"] == "cores" else "all"
        rows.append(
            (
                point["by"],
                f"{image['bytes'] / 1e6:,.0f} MB",
                f"{image['files']:,}",
                str(image["layers"]),
                cores,
                *(seconds(found[name]) for name in names),
                _ratio(found[peer] / found[OURS]) if peer else "",
                _ratio(found[peer] / found[CHANGED]) if peer else "",
            )
        )
    head = ("grows", "size", "files", "layers", "cores", *names, "peer / native", "peer / top layer changed")
    return f"{_signature(told)}\n\n![lines](figures/growth.svg)\n\n{_grid(head, rows)}"


def compared(told: Found) -> str:
    """Groups of ways, each beside the first of its group."""
    first: dict[str, float] = {}
    rows = []
    for row in told["rows"]:
        group = row["way"].partition(":")[0]
        base = first.setdefault(group, median(row, "seconds"))
        rows.append(
            (
                row["way"],
                seconds(median(row, "seconds")),
                _spread(row),
                _ratio(median(row, "seconds") / base),
                seconds(median(row, "cpu")),
                _megabytes(max(run["peak"] for run in row["runs"])),
                _megabytes(median(row, "written")),
                row["note"],
            )
        )
    head = ("what", "median", "spread", "times sqshpipe", "CPU", "peak memory", "written", "")
    about = f"One .sqsh of {_megabytes(told['file_bytes'])}. "
    return f"{_signature(told, about)}\n\n{_grid(head, rows)}"


def plan(told: Found) -> str:
    """Rows with the growth from few to many."""
    base = median(told["rows"][0], "seconds")
    rows = [
        (
            row["way"],
            seconds(median(row, "seconds")),
            _spread(row),
            _ratio(median(row, "seconds") / base),
            seconds(median(row, "cpu")),
            _megabytes(max(run["peak"] for run in row["runs"])),
        )
        for row in told["rows"]
    ]
    about = f"{told['files_an_image']} files in each context. "
    head = ("", "median", "spread", "times the first", "CPU", "peak memory")
    return f"{_signature(told, about)}\n\n{_grid(head, rows)}"


def start(told: Found) -> str:
    """Commands beside the bare interpreter."""
    rows = [
        (
            f"`{row['way']}`",
            seconds(median(row, "seconds")),
            _spread(row),
            seconds(median(row, "cpu")),
            _megabytes(max(run["peak"] for run in row["runs"])),
        )
        for row in told["rows"]
    ]
    return f"{_signature(told)}\n\n{_grid(('', 'median', 'spread', 'CPU', 'peak memory'), rows)}"


def store(told: Found) -> str:
    """Few releases beside many, in one image and in a hundred; milliseconds."""
    (least, few), *many = told["milliseconds"].items()
    head = ["ms, best of rounds", f"{least} releases"]
    for images, _ in many:
        head += [f"many, in {images} image{'s' if images != '1' else ''}", "times"]
    rows = []
    for name, base in few.items():
        row = [name, f"{base:.1f}"]
        for images, figures in many:
            row += [f"{figures[name]:.1f}", _ratio(told["ratios"][images][name])]
        rows.append(row)
    return f"{_signature(told)}\n\n{_grid(head, rows)}"


def importer(told: Found) -> str:
    """Milliseconds of look-ups, alone and many at once."""
    rows = [
        (name, f"{each['median_ms']:.1f}", f"{each['p99_ms']:.1f}", f"{each['cpu_ms']:.1f}")
        for name, each in told["rows"].items()
    ]
    about = f"{told['releases']} releases. "
    return f"{_signature(told, about)}\n\n{_grid(('ms', 'median', 'p99', 'CPU'), rows)}"


def mirror(told: Found) -> str:
    """Ours beside skopeo."""
    rows = [
        (name, f"{each['seconds']:.1f} s", f"{each['cpu_seconds']:.1f} s", f"{each['peak_mb']} MB")
        for name, each in told.items()
        if isinstance(each, dict) and "cpu_seconds" in each
    ]
    about = f"{told['megabytes']} MB from registry to registry; skopeo takes {told['ratio']} times as long. "
    return f"{_signature(told, about)}\n\n{_grid(('', 'median', 'CPU', 'peak memory'), rows)}"


def refresh(told: Found) -> str:
    """Near and far registries."""
    rows = [
        (name, f"{each['seconds']:.2f} s", f"{each['seconds_best']:.2f} s", f"{each['cpu_seconds']:.2f} s")
        for name, each in told.items()
        if isinstance(each, dict) and "cpu_seconds" in each
    ]
    about = f"{told['images']} images of which none changed. "
    return f"{_signature(told, about)}\n\n{_grid(('registry', 'median', 'best', 'CPU'), rows)}"


def node(told: Found) -> str:
    """Where time goes at a node's start."""
    rows = [
        (
            row["way"],
            *(seconds(row[key]) if row.get(key) is not None else "" for key in ("first_rank", "work")),
            row.get("note", ""),
        )
        for row in told.get("ways", told.get("seconds"))
    ]
    return f"{_signature(told)}\n\n{_grid(('way', 'to the first rank', 'work after that', ''), rows)}"


def native(told: Found) -> str:
    """Ratios of the large image beside their goals."""
    image = told["image"]
    size, layers = image["unpacked_bytes"] / 1e9, len(image["layers"])
    about = f"{size:.1f} GB unpacked, {image['entries']:,} members, {layers} layers."
    rows = [(name, _ratio(ratio), goal) for name, ratio, goal in told["ratios"]]
    return f"{_signature(told, about)}\n\n{_grid(('', 'ratio', 'goal'), rows)}"


def points(told: Found) -> str:
    """Rows of plain numbers."""
    names = list(told["points"][0])
    rows = [[_plain(name, point[name]) for name in names] for point in told["points"]]
    return f"{_signature(told)}\n\n{_grid([name.replace('_', ' ') for name in names], rows)}"


def _plain(name: str, value: Any) -> str:
    return _megabytes(value) if name.endswith("bytes") else f"{value:,}"


def readme(told: Found, *, korean: bool) -> str:
    """The few lines that a README shows."""
    rows = _named(told)
    fresh, changed = median(rows[OURS], "seconds"), median(rows[CHANGED], "seconds")
    peers = [row for row in told["rows"] if not row["way"].startswith("sqshpipe")]
    lines = [
        (
            row["way"],
            seconds(median(row, "seconds")),
            _ratio(median(row, "seconds") / fresh),
            _ratio(median(row, "seconds") / changed),
        )
        for row in (rows[OURS], rows[CHANGED], *sorted(peers, key=lambda row: median(row, "seconds")))
    ]
    head = (
        ("방법", "중앙값", "native 대비", "맨 위 레이어만 바뀐 native 대비")
        if korean
        else ("way", "median", "times native", "times native after a change of the top layer")
    )
    words = (
        f"측정: {told['date']}, `make bench SIZE={told['size']}`, {where(told)}."
        if korean
        else f"{image_words(told['image'])}, `make bench SIZE={told['size']}`, {where(told)}."
    )
    return f"![bars](docs/figures/convert.svg)\n\n{_grid(head, lines)}\n{words}\n"
