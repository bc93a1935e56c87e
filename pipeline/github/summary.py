"""What people read of a run: Markdown for the job's page, fit to be a comment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.github.event import Wanted
from pipeline.text import code, markdown

_MOST = 20
_LONGEST = 4000  # characters of an error that are shown


def wanted_markdown(wanted: Wanted, reasons: Mapping[str, Sequence[str]]) -> str:
    """Which images a run is for, and why."""
    does = "publishes" if wanted.publish else "tries, without publishing,"
    if not wanted.images:
        return f"### Images\n\nNo image is affected by {markdown(wanted.reason)}.\n"
    lines = [
        f"### Images\n\nThis run ({markdown(wanted.reason)}) {does} {code(wanted.version)} of:\n",
        "| image | because |",
    ]
    lines.append("|---|---|")
    for image in wanted.images:
        why = "; ".join(reasons.get(image, ())) or wanted.reason
        lines.append(f"| {markdown(image)} | {markdown(why)} |")
    return "\n".join(lines) + "\n"


def checked_markdown(
    image: str,
    *,
    reference: str,
    stages: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any] | None,
    error: str,
) -> str:
    """How one image fared: its stages, and what the scanner found."""
    mark = "❌" if error else "✅"
    lines = [f"### {mark} {markdown(image)}", ""]
    if error:
        lines += [*(f"> {markdown(line)}" for line in error[:_LONGEST].split("\n")), ""]
    if reference:
        lines += [code(reference), ""]
    lines += ["| stage | outcome | seconds | |", "|---|---|---|---|"]
    lines += [
        f"| {stage['stage']} | {stage['outcome']} | {stage['seconds']:.1f} | {markdown(stage['text'])} |"
        for stage in stages
    ]
    if verdict is not None:
        lines += ["", *_findings(verdict)]
    return "\n".join(lines) + "\n"


def _findings(verdict: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{number} {markdown(severity)}" for severity, number in verdict["counts"].items())
    lines = [f"Findings ({markdown(verdict['scanner'])}): {counts or 'none'}"]
    blocking = [finding for finding in verdict["findings"] if finding["decision"] == "blocks"]
    if blocking:
        lines += ["", "| blocks | severity | package |", "|---|---|---|"]
        lines += [
            f"| {markdown(one['id'])} | {markdown(one['severity'])} | {markdown(one['package'])} |"
            for one in blocking[:_MOST]
        ]
        if len(blocking) > _MOST:
            lines.append(f"| and {len(blocking) - _MOST} more | | |")
    return lines
