"""Which images a Dockerfile builds on, and the same Dockerfile with the base at its locked digest.

The file on disk is never touched: the builder is given another one, in which each FROM (and ``COPY
--from``, ``RUN --mount=from=``) that means the base of images.yaml names it by digest. Lines keep their
numbers, so that what a builder says about a line is true of both.

How a Dockerfile says that it means the base:

- it names it: ``FROM nvcr.io/nvidia/pytorch:24.01-py3``, in any of the spellings that docker takes for the
  same image;
- or through arguments before the first FROM (``ARG VERSION=24.01`` … ``FROM
  nvcr.io/nvidia/pytorch:${VERSION}-py3``), with the values of ``build_args``;
- or ``ARG BASE_IMAGE`` and ``FROM ${BASE_IMAGE}``: that argument is given by us, so that images.yaml alone
  names the base.

Grammar: Dockerfile reference, https://docs.docker.com/reference/dockerfile/ (parser directives, ARG before
FROM, here-documents).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.oci.reference import DEFAULT_TAG, Reference

BASE_ARGUMENT = "BASE_IMAGE"

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z]+)\s*=\s*(\S+)\s*")
_HEREDOC = re.compile(r"<<-?\s*([\"']?)([A-Za-z_][A-Za-z0-9_]*)\1")
_TAKES_HEREDOC = ("RUN", "COPY", "ADD")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\})")
_FROM = re.compile(
    r"(?P<head>\s*FROM\s+(?:--\S+\s+)*)(?P<image>\S+)(?P<tail>(?:\s+AS\s+(?P<stage>\S+))?\s*)", re.IGNORECASE
)
_ARG = re.compile(r"\s*ARG\s+(.*)", re.IGNORECASE | re.DOTALL)
_ARG_WORD = re.compile(r"([A-Za-z_]\w*)(?:=(\"[^\"]*\"|'[^']*'|\S*))?")
_TAKEN_FROM = {
    "COPY": re.compile(r"--from=(\S+)"),
    "ADD": re.compile(r"--from=(\S+)"),
    "RUN": re.compile(r"--mount=(?:\S*,)?from=([^,\s]+)\S*"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedDockerfile:
    """A Dockerfile in which the base stands by digest.

    `others` are the images besides the base that it builds on, as it names them; nothing pins those.
    `syntax` is the image of the builder's own grammar (``# syntax=``), if it names one. `registries` are the
    hosts of all these. `takes_base` says that it declares ``ARG BASE_IMAGE``.
    """

    text: str
    others: tuple[str, ...]
    syntax: str | None
    takes_base: bool

    @property
    def registries(self) -> tuple[str, ...]:
        hosts = []
        for other in (*self.others, *([self.syntax] if self.syntax else ())):
            with suppress(ConfigError):
                hosts.append(Reference.parse(other).registry)
        return tuple(dict.fromkeys(hosts))


@dataclass(slots=True)
class _Instruction:
    """One instruction with its continuation lines as they stand in the file; without here-documents."""

    first_line: int
    lines: list[str]

    def joined(self, escape: str) -> str:
        """The instruction on one line, without the comments between its lines."""
        kept = [line for i, line in enumerate(self.lines) if i == 0 or not line.lstrip().startswith("#")]
        return "".join(re.sub(rf"{re.escape(escape)}[ \t]*$", "", line.rstrip("\r\n")) for line in kept)


def pin_base(text: str, base: Reference, build_args: Mapping[str, str], *, name: str) -> PinnedDockerfile:
    """Put `base`, which has a digest, at each place of a Dockerfile that means it.

    `name` is the file's, for errors. Raises ConfigError when no FROM means the base: the lock would then hold
    something that is not used.
    """
    lines = text.splitlines(keepends=True)
    directives = _directives(lines)
    escape = directives.get("escape", "\\")
    arguments: dict[str, str] = {}
    given = {BASE_ARGUMENT: str(base.with_digest(None)), **build_args}
    stages: set[str] = set()
    others: list[str] = []
    takes_base = found = seen_from = False
    for instruction in _instructions(lines, escape):
        joined = instruction.joined(escape)
        declared = _ARG.fullmatch(joined)
        if declared and not seen_from:
            takes_base = takes_base or any(m[1] == BASE_ARGUMENT for m in _ARG_WORD.finditer(declared[1]))
            _declare(arguments, declared[1], given)
            continue
        match = _FROM.fullmatch(joined)
        image = _expand(match["image"], arguments) if match else None
        if match and image is not None:
            seen_from = True
            if image.lower() not in stages and image != "scratch":
                if _same(image, base):
                    found = True
                    _replace(lines, instruction, f"{match['head']}{_spelled(base)}{match['tail']}")
                else:
                    others.append(image)
            stages.add((match["stage"] or "").lower())
            continue
        for offset, start, end in reversed(list(_taken_from(instruction, escape))):
            number = instruction.first_line + offset
            source = lines[number][start:end]
            if source.lower() in stages or source.isdigit():
                continue
            if _same(source, base):
                lines[number] = f"{lines[number][:start]}{_spelled(base)}{lines[number][end:]}"
            else:
                others.append(source)
    if not found:
        uses = ", ".join(dict.fromkeys(others)) or "no image at all"
        raise ConfigError(
            f"{name} builds on {uses}, but its base in images.yaml is {base.with_digest(None)}",
            hint=f"name one image in both, or write: ARG {BASE_ARGUMENT}, then FROM ${{{BASE_ARGUMENT}}}",
        )
    return PinnedDockerfile(
        text="".join(lines),
        others=tuple(dict.fromkeys(others)),
        syntax=directives.get("syntax"),
        takes_base=takes_base,
    )


def _taken_from(instruction: _Instruction, escape: str) -> Iterator[tuple[int, int, int]]:
    """Where flags of COPY and RUN name an image: the line in the instruction, and where in it from and to."""
    kind: re.Pattern[str] | None = None
    for offset, line in enumerate(instruction.lines):
        if offset and line.lstrip().startswith("#"):
            continue
        for word in re.finditer(r"\S+", line):
            if offset == 0 and not line[: word.start()].strip():
                kind = _TAKEN_FROM.get(word[0].upper())
            elif word[0].startswith("--") and kind is not None:
                if named := kind.fullmatch(word[0]):
                    yield offset, word.start() + named.start(1), word.start() + named.end(1)
            elif word[0] != escape:
                return


def _spelled(base: Reference) -> str:
    """``host/repo@digest``: with a tag beside the digest some registries answer 406."""
    return str(base.with_tag(None).with_digest(base.digest))


def _same(image: str, base: Reference) -> bool:
    try:
        named = Reference.parse(image)
    except ConfigError:
        return False  # the builder says what is wrong with it, and where
    if named.digest is not None:
        return named.name == base.name and named.digest == base.digest
    return (named.name, named.tag or DEFAULT_TAG) == (base.name, base.tag or DEFAULT_TAG)


def _directives(lines: list[str]) -> dict[str, str]:
    """The parser directives at the top: ``escape``, the line continuation character, and ``syntax``."""
    found: dict[str, str] = {}
    for line in lines:
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None:
            break
        found.setdefault(match[1].lower(), match[2])
    return found


def _instructions(lines: list[str], escape: str) -> Iterator[_Instruction]:
    number = 0
    while number < len(lines):
        first = number
        stripped = lines[number].strip()
        number += 1
        if not stripped or stripped.startswith("#"):
            continue
        while _goes_on(lines, first, number, escape):
            number += 1
        instruction = _Instruction(first_line=first, lines=lines[first:number])
        if stripped.split(maxsplit=1)[0].upper() in _TAKES_HEREDOC:
            for match in _HEREDOC.finditer(instruction.joined(escape)):
                number = _end_of_heredoc(lines, number, match[2])
        yield instruction


def _goes_on(lines: list[str], first: int, number: int, escape: str) -> bool:
    """Whether line `number` belongs to the instruction that began at `first`; empty and comment lines do."""
    if number >= len(lines):
        return False
    previous = number - 1
    while previous > first and (not lines[previous].strip() or lines[previous].lstrip().startswith("#")):
        previous -= 1
    return lines[previous].rstrip().endswith(escape)


def _end_of_heredoc(lines: list[str], number: int, word: str) -> int:
    """The first line after the here-document `word` that begins at line `number`; no end: nothing was one."""
    for later in range(number, len(lines)):
        if lines[later].strip() == word:
            return later + 1
    return number


def _declare(arguments: dict[str, str], words: str, given: Mapping[str, str]) -> None:
    for match in _ARG_WORD.finditer(words):
        default = (match[2] or "").strip("\"'")
        arguments[match[1]] = given.get(match[1], _expand(default, arguments))


def _expand(text: str, arguments: Mapping[str, str]) -> str:
    """Put in the values of $NAME, ${NAME}, ${NAME:-default} and ${NAME:+other}, as builders do in FROM."""

    def value(match: re.Match[str]) -> str:
        found = arguments.get(match[1] or match[2], "")
        operator, word = match[3] or "", match[4] or ""
        if operator.endswith("-"):
            return found or _expand(word, arguments)
        if operator.endswith("+"):
            return _expand(word, arguments) if found else ""
        return found

    return _VARIABLE.sub(value, text.strip("\"'"))


def _replace(lines: list[str], instruction: _Instruction, text: str) -> None:
    """Put `text` in the place of an instruction; its further lines become empty, so line numbers stay."""
    for offset, line in enumerate(instruction.lines):
        ending = line[len(line.rstrip("\r\n")) :]
        lines[instruction.first_line + offset] = (text if offset == 0 else "") + ending
