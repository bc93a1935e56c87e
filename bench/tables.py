"""Tables of the documents: each function takes one result as it is kept and gives Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.drawing import seconds
from bench.measuring import median

Found = Mapping[str, Any]

_CHANGED = ", top layer changed"
OURS, CHANGED = "sqshpipe native", f"sqshpipe native{_CHANGED}"
FROM_REGISTRY = "sqshpipe native, from the registry"


def where(data: Found) -> str:
    """Date and machine in a line."""
    machine = data.get("machine", {})
    words = [
        str(data.get("date", "")),
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


def _signature(data: Found, about: str = "") -> str:
    """What was measured by which command, when, on what, and how busy that was."""
    load = data.get("machine", {}).get("load_1min_before", data.get("load_1min", data.get("load")))
    cores = data.get("cores", data.get("processors"))
    words = [
        about.strip().removesuffix("."),
        f"`{data['command']}`" if "command" in data else "",
        f"median of {data['rounds']} rounds in turn" if "rounds" in data else "",
        where(data) or (f"{cores} cores" if cores else ""),
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


def _named(data: Found) -> dict[str, Found]:
    return {row["way"]: row for row in data["rows"]}


def convert(data: Found) -> str:
    """All ways, quickest first, and in which respects a peer is better."""
    base = _named(data)[OURS]
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
        for row in sorted(data["rows"], key=lambda row: median(row, "seconds"))
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
    return (
        f"{_signature(data, image_words(data['image']) + '. ')}\n\n![bars](figures/convert.svg)\n\n"
        f"{_grid(head, rows)}\n{better(data)}\n{_left_out(data)}"
    )


def _left_out(data: Found) -> str:
    left = "; ".join(f"{name}: {why}" for name, why in data.get("left_out", {}).items())
    return f"\nLeft out: {left}.\n" if left else ""


_RESPECTS: tuple[tuple[str, str, Callable[[Found], float]], ...] = (
    ("quicker", "시간", lambda row: median(row, "seconds")),
    ("less CPU", "CPU", lambda row: median(row, "cpu")),
    ("less memory", "메모리", lambda row: max(run["peak"] for run in row["runs"])),
    ("fewer bytes written", "쓴 바이트", lambda row: median(row, "written")),
    ("a smaller file", "파일 크기", lambda row: row["runs"][-1]["size"]),
)


def _peers(data: Found) -> list[Found]:
    """Those that do the whole work, quickest first."""
    rows = [row for row in data["rows"] if not (row["way"].startswith("sqshpipe") or row.get("floor"))]
    return sorted(rows, key=lambda row: median(row, "seconds"))


def _beside(data: Found, peer: str) -> Found:
    """What of ours has the same start as that peer: nothing, the other layers, or a registry."""
    rows = _named(data)
    if peer.endswith(_CHANGED):
        return rows[CHANGED]
    return rows.get(FROM_REGISTRY, rows[OURS]) if peer == "enroot import" else rows[OURS]


def _ahead(data: Found) -> list[tuple[str, str, list[tuple[str, float]]]]:
    """The respects, in English and Korean, in which peers beat ours by at least 3 %, the best one first."""
    found = []
    for english, korean, value in _RESPECTS:
        parts = [(row["way"], value(row) / value(_beside(data, row["way"]))) for row in _peers(data)]
        if better := sorted((one for one in parts if one[1] < 0.97), key=lambda one: one[1]):
            found.append((english, korean, better))
    return found


def better(data: Found) -> str:
    """Where peers beat `sqshpipe native` from the same start."""
    lines = [
        f"- {word}: {', '.join(f'{name} ({_ratio(ratio)})' for name, ratio in peers)}"
        for word, _, peers in _ahead(data)
    ]
    if not lines:
        return "No peer that does the whole work is better than `sqshpipe native` in any of these columns."
    return (
        "**Where a peer is better** than **sqshpipe native** from the same start, "
        "as a part of its figure:\n\n" + "\n".join(lines)
    )


def growth(data: Found) -> str:
    """One table, a row a point."""
    names = [row["way"] for row in data["points"][0]["rows"]]
    peer = next((name for name in names if not name.startswith("sqshpipe")), None)
    rows = []
    for point in data["points"]:
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
    left = _left_out(data["points"][0])
    return f"{_signature(data)}\n\n![lines](figures/growth.svg)\n\n{_grid(head, rows)}{left}"


def compared(data: Found) -> str:
    """Groups of ways, each beside the first of its group."""
    first: dict[str, float] = {}
    rows = []
    for row in data["rows"]:
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
    about = f"One .sqsh of {_megabytes(data['file_bytes'])}. "
    return f"{_signature(data, about)}\n\n{_grid(head, rows)}{_left_out(data)}"


def plan(data: Found) -> str:
    """Rows with the growth from few to many."""
    base = median(data["rows"][0], "seconds")
    rows = [
        (
            row["way"],
            seconds(median(row, "seconds")),
            _spread(row),
            _ratio(median(row, "seconds") / base),
            seconds(median(row, "cpu")),
            _megabytes(max(run["peak"] for run in row["runs"])),
        )
        for row in data["rows"]
    ]
    about = f"{data['files_an_image']} files in each context. "
    head = ("", "median", "spread", "times the first", "CPU", "peak memory")
    return f"{_signature(data, about)}\n\n{_grid(head, rows)}"


def start(data: Found) -> str:
    """Commands beside the bare interpreter."""
    rows = [
        (
            f"`{row['way']}`",
            seconds(median(row, "seconds")),
            _spread(row),
            seconds(median(row, "cpu")),
            _megabytes(max(run["peak"] for run in row["runs"])),
        )
        for row in data["rows"]
    ]
    return f"{_signature(data)}\n\n{_grid(('', 'median', 'spread', 'CPU', 'peak memory'), rows)}"


def store(data: Found) -> str:
    """Few releases beside many, in one image and in a hundred; milliseconds."""
    (least, few), *many = data["milliseconds"].items()
    head = ["ms, best of rounds", f"{least} releases"]
    for images, _ in many:
        head += [f"many, in {images} image{'s' if images != '1' else ''}", "times"]
    rows = []
    for name, base in few.items():
        row = [name, f"{base:.1f}"]
        for images, figures in many:
            row += [f"{figures[name]:.1f}", _ratio(data["ratios"][images][name])]
        rows.append(row)
    return f"{_signature(data)}\n\n{_grid(head, rows)}"


def importer(data: Found) -> str:
    """Milliseconds of look-ups, alone and many at once."""
    rows = [
        (name, f"{each['median_ms']:.1f}", f"{each['p99_ms']:.1f}", f"{each['cpu_ms']:.1f}")
        for name, each in data["rows"].items()
    ]
    about = f"{data['releases']} releases. "
    return f"{_signature(data, about)}\n\n{_grid(('ms', 'median', 'p99', 'CPU'), rows)}"


def mirror(data: Found) -> str:
    """Ours beside skopeo."""
    rows = [
        (name, f"{each['seconds']:.1f} s", f"{each['cpu_seconds']:.1f} s", f"{each['peak_mb']} MB")
        for name, each in data.items()
        if isinstance(each, dict) and "cpu_seconds" in each
    ]
    about = f"{data['megabytes']} MB from registry to registry; skopeo takes {data['ratio']} times as long. "
    return f"{_signature(data, about)}\n\n{_grid(('', 'median', 'CPU', 'peak memory'), rows)}"


def refresh(data: Found) -> str:
    """Near and far registries."""
    rows = [
        (name, f"{each['seconds']:.2f} s", f"{each['seconds_best']:.2f} s", f"{each['cpu_seconds']:.2f} s")
        for name, each in data.items()
        if isinstance(each, dict) and "cpu_seconds" in each
    ]
    about = f"{data['images']} images of which none changed. "
    return f"{_signature(data, about)}\n\n{_grid(('registry', 'median', 'best', 'CPU'), rows)}"


def zstd_layers(data: Found) -> str:
    """The same image with gzip and with zstd layers."""
    rows = [(row["layers"], f"{row['stored_mb']} MB", f"{row['seconds']:.1f} s") for row in data["rows"]]
    about = (
        f"{data['bytes'] / 1e6:.0f} MB in {data['layers']} layers; gzip level 6, zstd level {data['level']}. "
    )
    return f"{_signature(data, about)}\n\n{_grid(('layers', 'stored', 'converted from nothing'), rows)}"


def small_files(data: Found) -> str:
    """A folder beside a .sqsh on the same distant file system."""
    rows = [(row["way"], f"{row['seconds']:.1f} s", f"{row['requests']:,}") for row in data["rows"]]
    about = f"{data['files']:,} files of 4 KiB; {data['delay_ms']} ms before each answer. "
    return f"{_signature(data, about)}\n\n{_grid(('way', 'time', 'requests'), rows)}"


def node(data: Found) -> str:
    """Where time goes at a node's start."""
    about = "Bytes are what the node reads of the file until then. "
    parts = [f"{_signature(data, about)}"]
    for store, title in (
        ("local", "The file on a local disk:"),
        ("slow", "On a store that takes 2 ms a read:"),
    ):
        rows = [
            (
                f"{row['way']}, warm" if row["warm"] else row["way"],
                str(row["ranks"]),
                *(
                    show(row[key]) if row[key] is not None else ""
                    for show, key in (
                        (seconds, "first_rank"),
                        (_megabytes, "first_bytes"),
                        (seconds, "work"),
                        (_megabytes, "bytes"),
                    )
                ),
                row["note"],
            )
            for row in data["stores"].get(store, [])
        ]
        names = ("way", "ranks", "to the first rank", "bytes", "work after that", "bytes", "")
        parts += [title, _grid(names, rows)] if rows else []
    return "\n\n".join(parts)


def native(data: Found) -> str:
    """Ratios of the large image beside their goals."""
    image = data["image"]
    size, layers = image["unpacked_bytes"] / 1e9, len(image["layers"])
    return goals(data, f"{size:.1f} GB unpacked, {image['entries']:,} members, {layers} layers.")


def goals(data: Found, about: str = "") -> str:
    """Figures beside their goals, exact enough to see whether they are met."""
    rows = [(name, f"{figure:.{2 if figure < 10 else 1}f}", goal) for name, figure, goal in data["ratios"]]
    return f"{_signature(data, about)}\n\n{_grid(('', 'figure', 'goal'), rows)}"


def difference(data: Found) -> str:
    """What a version costs by the layer that changed, and the time on a slow store."""
    what = ("changed", "grew", "read", "sent")
    rows = [
        (name, *(_megabytes(one[key]) for key in what), _megabytes(one["size"] / 100))
        for name, one in data["versions"].items()
    ]
    head = ("layer", "changed", "XFS grows by", "prewarm reads", "sync to S3 sends", "1 % of the file")
    slow = (name for name in data["ratios"] if name[0].startswith("2 ms"))
    times = [(name, _ratio(figure), goal) for name, figure, goal in slow]
    about = f"A .sqsh of {_megabytes(data['size'])}"
    return f"{_signature(data, about)}\n\n{_grid(head, rows)}\n{_grid(('', 'ratio', 'goal'), times)}"


def points(data: Found) -> str:
    """Rows of plain numbers."""
    names = list(data["points"][0])
    rows = [[_plain(name, point[name]) for name in names] for point in data["points"]]
    return f"{_signature(data)}\n\n{_grid([name.replace('_', ' ') for name in names], rows)}"


def _plain(name: str, value: Any) -> str:
    return _megabytes(value) if re.search(r"(^|_)bytes$", name) else f"{value:,}"


def readme(data: Found, *, korean: bool) -> str:
    """The few lines that a README shows: each way from nothing and after a change of the top layer."""
    rows = _named(data)
    lines = [_readme_row(data, "**sqshpipe native**", rows[OURS], rows[CHANGED])]
    lines += [
        _readme_row(data, row["way"], row, rows.get(f"{row['way']}{_CHANGED}", row))
        for row in _peers(data)
        if not row["way"].endswith(_CHANGED)
    ]
    head = (
        ("방법", "처음부터", "native 대비", "맨 위 레이어만 바뀐 뒤", "native 대비")
        if korean
        else ("way", "from nothing", "times native", "top layer changed", "times native")
    )
    return (
        f"![bars](docs/figures/convert.svg)\n\n{_grid(head, lines)}\n"
        f"{_measured(data, korean=korean)}\n\n{_better_words(data, korean=korean)}\n"
    )


def _readme_row(data: Found, name: str, fresh: Found, changed: Found) -> tuple[str, ...]:
    cold, warm = median(fresh, "seconds"), median(changed, "seconds")
    beside = _beside(data, fresh["way"])
    return (
        name,
        seconds(cold),
        _ratio(cold / median(beside, "seconds")),
        seconds(warm),
        _ratio(warm / median(_named(data)[CHANGED], "seconds")),
    )


def _measured(data: Found, *, korean: bool) -> str:
    image, rounds = data["image"], data["rounds"]
    repeat = f"`make bench SIZE={data['size']}`"
    if korean:
        return (
            f"이미지: 실제 파일 {image['files']:,}개, {image['bytes'] / 1e6:,.0f} MB, "
            f"gzip 레이어 {image['layers']}개. {rounds}회 측정의 중앙값. 다시 재려면 {repeat}. {where(data)}."
        )
    return f"{image_words(image)}; median of {rounds} rounds in turn; repeat it by {repeat}; {where(data)}."


def _better_words(data: Found, *, korean: bool) -> str:
    """In a line: the best peer in each respect in which one is better."""
    found = [(ko if korean else en, *peers[0]) for en, ko, peers in _ahead(data)]
    named = "; ".join(f"{word}: {name} ({_ratio(ratio)})" for word, name, ratio in found)
    if korean:
        return (
            f"다른 도구가 더 나은 점(native를 1로 볼 때): {named}."
            if named
            else "이 측정에서 더 나은 도구는 없었습니다."
        )
    return f"Where a peer is better, native being 1: {named}." if named else "No peer was better in this run."
