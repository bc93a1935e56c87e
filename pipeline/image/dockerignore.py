"""Which files of a build context are left out: the rules of .dockerignore, as BuildKit applies them.

The semantics are those of moby/patternmatcher, in order and with all their edges: case counts, a later
pattern wins, a pattern that matches a folder holds for all below it, ``**`` stands for any number of folders.
A pattern that is more than plain text becomes a regular expression of Go there, in which ``{``, ``|`` and
``^`` keep their meaning; here it becomes the same expression of Python.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.system.untrusted import read_regular
from pipeline.text import shown

_LIMIT = 4 << 20  # bytes of a file of patterns
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_ESCAPED = frozenset(".+()$")
_VALID = re.compile(  # by Go's filepath.Match: a class is closed and not empty, and an escape is not the last
    r"""(?: \\. | [^\\\[] | \[ (?: \^ | (?!\^) ) (?: (?:\\.|[^\\\-\]]) (?: - (?:\\.|[^\\\-\]]) )? )+ \] )*""",
    re.DOTALL | re.VERBOSE,
)
_REPEAT = re.compile(r"\{\d+(,\d*)?\}")
_CLASS_NAME = re.compile(r"\[:(\^?)(\w+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CLASSES_AND_CONTROLS = frozenset("dDsSwWafnrtv")
_SAME_IN_PYTHON = _CLASSES_AND_CONTROLS | frozenset("AbB")

State = tuple[bool, ...]
"""For a folder: which patterns match it or a folder above it."""


class BadPatternError(ValueError):
    """A pattern that BuildKit refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    text: str  # cleaned, without "!"
    exception: bool  # it stood behind "!": what it matches is sent after all
    matches: Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignore:
    """The patterns that apply to one build."""

    patterns: tuple[_Pattern, ...]

    @classmethod
    def of(cls, dockerfile: Path, context: Path) -> Ignore:
        """Read the file for this build: NAME.dockerignore next to the Dockerfile, else .dockerignore.

        Raises ConfigError for a file that cannot be read or is not a regular one, and for a bad pattern.
        """
        for path in cls.files(dockerfile, context):
            try:
                # a symlink is followed: the author of the context made it
                raw = read_regular(os.path.realpath(path), limit=_LIMIT)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
            try:
                return cls.parse(raw)
            except BadPatternError as error:
                raise ConfigError(
                    f"{path}: {error}", hint="in [a-z] the first character comes first"
                ) from error
        return cls(patterns=())

    @classmethod
    def parse(cls, raw: bytes) -> Ignore:
        """The patterns of a file's bytes. Raises BadPatternError."""
        found = []
        for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            text = os.fsdecode(line.removesuffix(b"\r"))
            cleaned = "" if text.startswith("#") else _cleaned(text)
            if cleaned:
                found.append(_compiled(cleaned))
        return cls(patterns=tuple(found))

    @staticmethod
    def files(dockerfile: Path, context: Path) -> tuple[Path, Path]:
        """The two files that may contain the patterns; the first one that exists is used."""
        return dockerfile.with_name(dockerfile.name + ".dockerignore"), context / ".dockerignore"

    def step(self, path: str, above: State | None) -> tuple[bool, State]:
        """Whether `path`, relative to the context, is left out, and the state for what is below it.

        `above` is the state of its folder, None in the context's root. A folder that is left out may still
        hold files that are sent.
        """
        left_out = False
        state = []
        for number, pattern in enumerate(self.patterns):
            match = above is not None and above[number]
            # A pattern that could change nothing is not tried; then it does not hold below the folder either.
            if not match and pattern.exception == left_out:
                match = bool(pattern.matches(path))
            state.append(match)
            if match:
                left_out = not pattern.exception
        return left_out, tuple(state)

    def matches(self, path: str) -> bool:
        """Whether `path`, relative to the context, is left out."""
        left_out, state = False, None
        for end in [i for i, character in enumerate(path) if character == "/"] + [len(path)]:
            left_out, state = self.step(path[:end], state)
        return left_out

    def may_hold_exceptions(self, folder: str) -> bool:
        """Whether anything below `folder`, which is left out, may be sent."""
        exceptions = [pattern.text for pattern in self.patterns if pattern.exception]
        plain = [_without_last_glob(text) for text in exceptions]
        if any(set(text) & set("*[]?^\\") for text in plain):
            return True
        return any(f"{text}/".startswith(f"{folder}/") for text in plain)


def _cleaned(line: str) -> str:
    """One line as a pattern: without spaces around it, as the shortest path, without a leading slash."""
    text = line.strip(_SPACE)
    exception = text.startswith("!")
    if exception:
        text = text[1:].strip(_SPACE)
    if text:
        text = _clean_path(text)
        text = text[1:] if len(text) > 1 and text.startswith("/") else text
    return f"!{text}" if exception else text


def _clean_path(text: str) -> str:
    return posixpath.normpath(text if not text.startswith("//") else "/" + text.lstrip("/"))


def _compiled(text: str) -> _Pattern:
    text = _clean_path(text.strip(_SPACE))
    exception = text.startswith("!")
    text = text.removeprefix("!")
    if not text:
        raise BadPatternError('a "!" with nothing behind it')
    if not _VALID.fullmatch(text):
        raise BadPatternError(f"{shown(text)} is not a valid pattern")
    return _Pattern(text=text, exception=exception, matches=_matcher(text))


def _matcher(text: str) -> Callable[[str], object]:
    kind, expression = _go_expression(text)
    if kind == "exact":
        return text.__eq__
    if kind == "prefix":
        start = text[:-2]
        return lambda path: path.startswith(start)
    if kind == "suffix":
        end = text[2:]
        whole = end[1:] if end.startswith("/") else None
        return lambda path: path.endswith(end) or path == whole
    try:
        return re.compile("".join(_as_python(expression)), re.ASCII).search
    except (re.error, OverflowError) as error:
        raise BadPatternError(f"{shown(text)} is not a valid pattern") from error


def _go_expression(text: str) -> tuple[str, str]:
    """How moby/patternmatcher compiles a pattern: exact, prefix, suffix or regexp, and the expression."""
    kind, parts = "exact", ["^"]
    at = 0
    while at < len(text):
        first, character = at == 0, text[at]
        at += 1
        if character == "*" and text.startswith("*", at):
            at += 1
            at += text.startswith("/", at)  # "**/" is as "**"
            if at == len(text):
                parts.append(".*")
                kind = "prefix" if kind == "exact" else "regexp"
            else:
                if parts[-1] != "(.*/)?":  # twice is as once, and would cost Python's engine dear
                    parts.append("(.*/)?")
                kind = "regexp"
            if first:
                kind = "suffix"
        elif character in "*?[]":
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(character, character))
            kind = "regexp"
        elif character == "\\":
            parts.append(f"\\{text[at]}")  # one that ends the pattern is not valid
            at += 1
            kind = "regexp"
        else:
            parts.append(f"\\{character}" if character in _ESCAPED else character)
    return kind, "".join(parts) + "$"


def _as_python(expression: str) -> Iterator[str]:
    """A regular expression of Go, as it comes from a pattern, in Python's grammar. Raises BadPatternError."""
    at, in_class = 0, False
    while at < len(expression):
        character = expression[at]
        at += 1
        if character == "\\":
            yield _escape(expression[at], in_class=in_class)
            at += 1
        elif in_class and (named := _CLASS_NAME.match(expression, at - 1)):
            if named[1] or named[2] not in _CLASSES:
                raise BadPatternError(f"{shown(named[0])} is not a class of characters that is known")
            yield _CLASSES[named[2]]
            at = named.end()
        elif in_class:
            in_class = character != "]"
            yield f"\\{character}" if character in "[&|~" else character
        elif character == "[":
            in_class = True
            negated = expression.startswith("^", at)
            yield "[^" if negated else "["
            at += negated
        elif character == "{" and not _REPEAT.match(expression, at - 1):
            yield "\\{"
        else:
            yield r"\Z" if character == "$" else character


def _escape(character: str, *, in_class: bool) -> str:
    invalid = character.isalnum() and character not in (
        _CLASSES_AND_CONTROLS if in_class else _SAME_IN_PYTHON
    )
    if character == "z" and not in_class:
        return r"\Z"
    if invalid:
        raise BadPatternError(f"\\{shown(character)} is not a valid escape")
    return f"\\{character}"


def _without_last_glob(text: str) -> str:
    return text.removesuffix("/**").removesuffix("/*")
