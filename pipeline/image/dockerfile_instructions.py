"""A Dockerfile as its instructions, each with the places of its characters in the file.

Grammar: Dockerfile reference, "Format": parser directives, comments, lines that an escape continues,
here-documents. The edges are those of BuildKit's parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.image.dockerfile_words import BadWordError, Flag, flags, shell_words, split_at_spaces

_DIRECTIVE = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC = re.compile(r"\d*<<(-?)[\t\n\f\r ]*([^<]*)")
_BARE = re.compile(r"[^\t\v\f\r ]+")
_TAKE_HEREDOC = ("RUN", "COPY", "ADD")

Place = tuple[int, int]
"""A line of the file and a column in it, both from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction on one line, without line continuations, comments between and here-documents.

    ``places`` says for each character of ``text`` where it stands in the file. ``name`` is in capitals.
    """

    name: str
    text: str
    places: tuple[Place, ...]
    flags: tuple[Flag, ...]
    rest: int

    @property
    def line(self) -> int:
        """The number of its first line, from 1."""
        return self.places[0][0] + 1

    @property
    def words(self) -> list[tuple[str, int]]:
        """What follows the flags, split at spaces, and where each begins in ``text``."""
        return [(match[0], match.start()) for match in _BARE.finditer(self.text, self.rest)]


def directives(lines: list[str]) -> dict[str, str]:
    """The parser directives at the top: ``escape``, the line continuation character, and ``check``."""
    return _directives(lines, "#")


def syntax(lines: list[str]) -> str | None:
    """The image of the grammar that the file names, also behind a #! line or in a comment of //."""
    rest = lines[1:] if lines and lines[0].startswith("#!") else lines
    found = _directives(rest, "#").get("syntax") or _directives(rest, "//").get("syntax")
    return found.split(" ", 1)[0] if found else None


def _directives(lines: list[str], comment: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        text = line.strip()
        match = _DIRECTIVE.fullmatch(text.removeprefix(comment)) if text.startswith(comment) else None
        if match is None or match[1].lower() not in _DIRECTIVES:
            break
        found.setdefault(match[1].lower(), match[2])
    return found


def instructions(lines: list[str], escape: str) -> Iterator[Instruction]:
    """The instructions of a file whose lines end in a newline each, except perhaps the last."""
    continued = re.compile(rf"(?<!{re.escape(escape)}){re.escape(escape)}[ \t]*\Z")
    number = 0
    while number < len(lines):
        text = lines[number].rstrip("\r\n")
        indent = len(text) - len(text.lstrip())
        found: list[tuple[str, Place]] = []
        if not text.strip() or _is_comment(text):
            number += 1
            continue
        more = _take(found, text, number, indent, continued)
        number += 1
        while more and number < len(lines):
            text = lines[number].rstrip("\r\n")
            if text.strip() and not _is_comment(text):
                more = _take(found, text, number, 0, continued)
            number += 1
        instruction = _parsed(found, escape)
        if instruction is None:
            continue
        for word in _heredocs(instruction, escape):
            number = _end_of_heredoc(lines, number, word)
        yield instruction


def _take(
    found: list[tuple[str, Place]], text: str, number: int, start: int, continued: re.Pattern[str]
) -> bool:
    """Add a line to an instruction. Returns whether the next line belongs to the instruction too."""
    end = continued.search(text)
    stop = end.start() if end else len(text)
    found += [(text[column], (number, column)) for column in range(start, stop)]
    return end is not None


def _parsed(found: list[tuple[str, Place]], escape: str) -> Instruction | None:
    while found and found[0][0].isspace():
        found.pop(0)
    if not found:
        return None
    text = "".join(character for character, _ in found)
    name = split_at_spaces(text)[0]
    start = text.index(name) + len(name)
    its_flags, rest = flags(text, start, escape=escape)
    return Instruction(
        name=name.upper(),
        text=text,
        places=tuple(place for _, place in found),
        flags=tuple(its_flags),
        rest=rest,
    )


def _heredocs(instruction: Instruction, escape: str) -> list[tuple[str, bool]]:
    """The end of each here-document that follows, and whether tabs before it do not count."""
    name, rest = instruction.name, instruction.text[instruction.rest :]
    if name == "ONBUILD":
        words = split_at_spaces(rest)
        name = words[0].upper() if words else ""
        _, start = flags(rest, rest.index(words[0]) + len(words[0]) if words else 0, escape=escape)
        rest = rest[start:]
    if name not in _TAKE_HEREDOC or "<<" not in instruction.text or _is_json(rest):
        return []
    found = []
    try:
        for word in shell_words(instruction.text, raw=True):
            match = _HEREDOC.fullmatch(word)
            names = shell_words(match[2], raw=False) if match else []
            if match and len(names) == 1:
                found.append((names[0], match[1] == "-"))
    except BadWordError:  # a quote that is not closed: BuildKit reads no here-document then
        return []
    return found


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(isinstance(word, str) for word in found)


def _end_of_heredoc(lines: list[str], number: int, word: tuple[str, bool]) -> int:
    """The first line after a here-document that begins at line ``number``; ``number`` when its end is
    missing.
    """
    for later in range(number, len(lines)):
        line = lines[later].rstrip("\r\n")
        if (line.lstrip("\t") if word[1] else line) == word[0]:
            return later + 1
    return number


def _is_comment(text: str) -> bool:
    return text.lstrip().startswith("#")
