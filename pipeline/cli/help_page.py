"""``sqshpipe --help``: the page of all verbs, drawn as typer draws the help of each, but without rich.

Loading rich and what it brings takes longer than all the rest that this page needs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import typer

_NARROWEST = 60
_BORDERS = str.maketrans({**dict.fromkeys("╭╮╰╯", "+"), "─": "-", "│": "|", "…": "..."})
_STYLES = {"border": "2", "verb": "1;36", "option": "1;36", "switch": "1;32", "type": "1;33", "usage": "1"}


@dataclass(frozen=True, slots=True)
class _Paper:
    """What is drawn on: ``width`` in columns, and whether it takes colours."""

    width: int
    coloured: bool

    def styled(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.coloured and text else text

    def paragraph(self, text: str) -> list[str]:
        return [f" {line}" for line in _wrapped(text, self.width - 2)]

    def panel(self, title: str, rows: Sequence[tuple[Sequence[tuple[str, str]], str]]) -> Iterator[str]:
        """A box of ``rows``: styled cells of the same widths in each, then a text whose lines are wrapped."""
        edge = self.styled("border", "│")
        yield self.styled("border", f"╭─ {title} {'─' * (self.width - 5 - len(title))}╮")
        for cells, text in rows:
            taken = sum(len(cell) + 2 for _, cell in cells)
            head = "".join(self.styled(style, cell.rstrip()) + _blank(cell) + "  " for style, cell in cells)
            room = self.width - 4 - taken
            for line in (part for told in text.split("\n") for part in _wrapped(told, room)):
                yield f"{edge} {head}{line.ljust(room)} {edge}"
                head = " " * taken
        yield self.styled("border", f"╰{'─' * (self.width - 2)}╯")


def draw(
    context: typer.Context,
    options: Sequence[tuple[str, str, str, str]],
    verbs: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    """The page: ``options`` as (long, short, type, help), ``verbs`` by panel as (name, line).

    As wide as the terminal; colours follow the terminal, NO_COLOR and FORCE_COLOR.
    """
    paper = _Paper(max(_NARROWEST, shutil.get_terminal_size().columns), takes_colours())
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = ["", paper.styled("usage", f" Usage: {usage}"), "", *paper.paragraph(command.help or ""), ""]
    lines += paper.panel("Options", _options(options))
    longest = max(len(name) for rows in verbs.values() for name, _ in rows)
    for title, rows in verbs.items():
        lines += paper.panel(title, [([("verb", name.ljust(longest))], line) for name, line in rows])
    epilog = paper.paragraph((command.epilog or "").replace("`", ""))
    text = "\n".join([*lines, "", *epilog, ""])
    return text if _takes_boxes() else text.translate(_BORDERS)


def _options(options: Sequence[tuple[str, str, str, str]]) -> list[tuple[list[tuple[str, str]], str]]:
    long, short, kind = (max(len(option[column]) for option in options) for column in range(3))
    return [
        (
            [
                ("option", one[0].ljust(long)),
                ("switch", one[1].ljust(short + 4)),
                ("type", one[2].ljust(kind)),
            ],
            one[3],
        )
        for one in options
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _blank(cell: str) -> str:
    return " " * (len(cell) - len(cell.rstrip()))


def takes_colours() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    terminal = sys.stdout.isatty() and not re.fullmatch("dumb|unknown", os.environ.get("TERM", ""))
    return terminal or bool(os.environ.get("FORCE_COLOR"))


def _takes_boxes() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
