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

Variables are substituted as BuildKit does it, with the automatic arguments (TARGETARCH …) too. Only the
characters of an image's name change: comments, line continuations and here-documents stay as they are.

Grammar: Dockerfile reference, https://docs.docker.com/reference/dockerfile/ (ARG before FROM).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.image.dockerfile_instructions import Instruction, directives, instructions, syntax
from pipeline.image.dockerfile_words import BadWordError, Flag, argument_words, substituted
from pipeline.oci.platform import Platform
from pipeline.oci.reference import DEFAULT_TAG, Reference
from pipeline.text import shown

BASE_ARGUMENT = "BASE_IMAGE"

_SYNTAX_ARGUMENT = "BUILDKIT_SYNTAX"
_NEEDS_NO_QUOTES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:@=,+-")


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedDockerfile:
    """A Dockerfile in which the base is named by its digest.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit:
    """New text for the characters of an instruction from ``start`` to before ``end``."""

    instruction: Instruction
    start: int
    end: int
    text: str


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What is known of a Dockerfile while it is read from the top down."""

    base: Reference
    escape: str
    given: Mapping[str, str]
    arguments: dict[str, str]
    stages: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    edits: list[_Edit] = field(default_factory=list)
    takes_base: bool = False
    found: bool = False
    seen_from: bool = False

    def take(self, instruction: Instruction, name: str) -> None:
        """FROM, and ARG before the first one. Raises ConfigError."""
        try:
            if instruction.name == "FROM":
                self.stage(instruction)
            elif instruction.name == "ARG" and not self.seen_from:
                self.declare(instruction)
        except BadWordError as error:
            raise ConfigError(f"{name}, line {instruction.line}: {error}") from error

    def declare(self, instruction: Instruction) -> None:
        """Record an ARG that stands before the first FROM; FROM lines may use it."""
        for word in argument_words(instruction.text[instruction.rest :], escape=self.escape):
            name, has_default, default = word.partition("=")
            self.takes_base = self.takes_base or name == BASE_ARGUMENT
            if name in self.given:
                self.arguments[name] = self.given[name]
            elif has_default:
                self.arguments[name] = substituted(default, self.arguments, escape=self.escape)

    def stage(self, instruction: Instruction) -> None:
        """A FROM."""
        self.seen_from = True
        words = instruction.words
        named = len(words) == 3 and words[1][0].upper() == "AS"
        if len(words) != 1 and not named:
            raise BadWordError("FROM takes an image alone, or an image, AS and a name")
        word, start = words[0]
        image = substituted(word, self.arguments, escape=self.escape)
        if not image:
            raise BadWordError(f"{shown(word)} has no value: write ARG and a value before the first FROM")
        if image.lower() not in self.stages and image != "scratch":
            if _same(image, self.base):
                self.found = True
                self.edit(instruction, start, start + len(word), _spelled(self.base))
            else:
                self.others.append(image)
        if named:
            self.stages.add(words[2][0].lower())

    def take_from(self, instruction: Instruction) -> None:
        """The flags of COPY and RUN that name an image; a stage's name wins."""
        for flag in instruction.flags:
            for image, first in _sources(instruction.name, flag):
                if not image or image.lower() in self.stages or image.isdecimal():
                    continue
                if _same(image, self.base):
                    self._replace_in_flag(instruction, flag, first, image)
                else:
                    self.others.append(image)

    def _replace_in_flag(self, instruction: Instruction, flag: Flag, first: int, image: str) -> None:
        places = flag.places[first : first + len(image)]
        if places[-1] - places[0] == len(image) - 1:
            self.edit(instruction, places[0], places[-1] + 1, _spelled(self.base))
            return
        text = flag.text[2:first] + _spelled(self.base) + flag.text[first + len(image) :]
        if not _NEEDS_NO_QUOTES.issuperset(text):
            escaped = text.replace(self.escape, self.escape * 2).replace('"', f'{self.escape}"')
            text = f'"{escaped}"'
        self.edit(instruction, flag.start, flag.end, f"--{text}")  # quotes stood within the name

    def edit(self, instruction: Instruction, start: int, end: int, text: str) -> None:
        self.edits.append(_Edit(instruction=instruction, start=start, end=end, text=text))


def pin_base(
    text: str,
    base: Reference,
    build_args: Mapping[str, str],
    *,
    name: str,
    platform: Platform,
    build_platform: Platform | None = None,
    target: str | None = None,
) -> PinnedDockerfile:
    """Write `base`, which has a digest, at each place where a Dockerfile names the base.

    `name` is the file's, for errors. `platform` is the image's, `build_platform` the engine's, None for the
    same. Raises ConfigError when no FROM names the base, since the lock would then contain an unused
    digest, and for an invalid FROM or ARG, with the number of its line.
    """
    lines = text.split("\n")
    lines = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
    escape = directives(lines).get("escape", "\\")
    escape = escape if escape in ("\\", "`") else "\\"  # the builder says what is wrong with another one
    found = list(instructions(lines, escape))
    reading = _Reading(
        base=base,
        escape=escape,
        given={BASE_ARGUMENT: str(base.with_digest(None)), **build_args},
        arguments=_platform_arguments(platform, build_platform or platform, build_args)
        | {"TARGETSTAGE": build_args.get("TARGETSTAGE", target or _last_stage(found))},
    )
    for instruction in found:
        reading.take(instruction, name)
    for instruction in found:  # a stage may also be named before it begins
        reading.take_from(instruction)
    if not reading.found:
        uses = ", ".join(dict.fromkeys(map(shown, reading.others))) or "no image at all"
        raise ConfigError(
            f"{name} builds on {uses}, but its base in images.yaml is {base.with_digest(None)}",
            hint=f"name one image in both, or write: ARG {BASE_ARGUMENT}, then FROM ${{{BASE_ARGUMENT}}}",
        )
    return PinnedDockerfile(
        text=_edited(lines, reading.edits),
        others=tuple(dict.fromkeys(reading.others)),
        syntax=build_args.get(_SYNTAX_ARGUMENT) or syntax(lines),
        takes_base=reading.takes_base,
    )


def _edited(lines: list[str], edits: list[_Edit]) -> str:
    cells: dict[int, list[str]] = {}
    for edit in edits:
        text = edit.text
        for number, column in edit.instruction.places[edit.start : edit.end]:
            cells.setdefault(number, list(lines[number]))[column] = text
            text = ""
    return "".join("".join(cells.get(number, [line])) for number, line in enumerate(lines))


def _last_stage(found: list[Instruction]) -> str:
    named = [instruction.words for instruction in found if instruction.name == "FROM"]
    return named[-1][2][0].lower() if named and len(named[-1]) == 3 else "default"


def _platform_arguments(target: Platform, build: Platform, build_args: Mapping[str, str]) -> dict[str, str]:
    """The arguments that BuildKit declares by itself before the first FROM."""
    found: dict[str, str] = {}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        found[f"{prefix}PLATFORM"] = str(platform)
        found[f"{prefix}OS"] = platform.os
        found[f"{prefix}OSVERSION"] = ""
        found[f"{prefix}ARCH"] = platform.architecture
        found[f"{prefix}VARIANT"] = platform.variant
    return {name: build_args.get(name, value) for name, value in found.items()}


def _sources(name: str, flag: Flag) -> Iterator[tuple[str, int]]:
    """The images or stages that a flag of the instruction `name` names, and where each begins in its text."""
    if name in ("COPY", "ADD") and flag.text.startswith("--from="):
        yield flag.text.removeprefix("--from="), len("--from=")
    elif name == "RUN" and flag.text.startswith("--mount="):
        for part in next(csv.reader(io.StringIO(flag.text.removeprefix("--mount="), newline="")), []):
            key, _, value = part.partition("=")
            begin = flag.text.find(part)
            if key.lower() == "from" and begin >= 0:
                yield value, begin + len("from=")


def _spelled(base: Reference) -> str:
    """``host/repo@digest``: some registries answer 406 to a tag together with a digest."""
    return str(base.with_tag(None).with_digest(base.digest))


def _same(image: str, base: Reference) -> bool:
    try:
        named = Reference.parse(image)
    except ConfigError:
        return False  # the builder says what is wrong with it, and where
    if named.digest is not None:
        return named.name == base.name and named.digest == base.digest
    return (named.name, named.tag or DEFAULT_TAG) == (base.name, base.tag or DEFAULT_TAG)
