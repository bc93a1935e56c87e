"""Words of a Dockerfile: quotes, escapes and the substitution of variables, by BuildKit's rules.

Grammar: Dockerfile reference, "Environment replacement". The edges are those of BuildKit's own lexer: an
escape outside of quotes is dropped before any character, and ``#``, ``%`` and ``/`` take patterns with ``*``
and ``?`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SPECIAL = frozenset("@*#?-$!0")
_GROUP = re.compile(r"\$(?:\$|[A-Za-z0-9_]+|\{[A-Za-z0-9_]+\})")
_WHITESPACE = re.compile(r"[\t\v\f\r ]+")


class BadWordError(ValueError):
    """What BuildKit refuses as well."""


def substituted(word: str, values: Mapping[str, str], *, escape: str = "\\") -> str:
    """``word`` with the values of its variables, without quotes and escapes. Raises BadWordError."""
    try:
        return _Lexer(word, values, escape=escape).process(None, raw_escapes=False)[0]
    except RecursionError as error:
        raise BadWordError("${…} is nested too deep") from error


def shell_words(line: str, *, raw: bool) -> list[str]:
    """A line split into words, variables left as they are, with ``raw`` quotes and escapes too.

    Raises BadWordError.
    """
    try:
        return _Lexer(line, None, escape="\\", raw=raw).process(None, raw_escapes=raw)[1]
    except RecursionError as error:
        raise BadWordError("${…} is nested too deep") from error


def split_at_spaces(text: str) -> list[str]:
    return _WHITESPACE.split(text.strip())


class _Lexer:
    """One pass over one text; ``values`` None leaves variables as they are."""

    def __init__(
        self, text: str, values: Mapping[str, str] | None, *, escape: str, raw: bool = False
    ) -> None:
        self._text = text
        self._at = 0
        self._values = values
        self._escape = escape
        self._raw_quotes = raw

    def process(self, stop: str | None, *, raw_escapes: bool) -> tuple[str, list[str]]:
        """The text up to ``stop``, which is consumed, or to the end; and the same split at bare spaces."""
        words = _Words()
        while self._at < len(self._text):
            character = self._peek()
            if character == stop:
                self._at += 1
                return words.whole, words.done()
            if character == "$":
                words.add(self._dollar())
            elif character == "'":
                words.add_whole(self._single_quotes())
            elif character == '"':
                words.add_whole(self._double_quotes(raw_escapes))
            elif character == "<":
                words.add_whole(self._less_than())
            elif character == self._escape:
                self._at += 1
                escaped = self._next()
                kept = character if raw_escapes else ""
                words.add_whole(kept + escaped)
            else:
                words.add(self._next())
        if stop is not None:
            raise BadWordError(f"{stop} is missing")
        return words.whole, words.done()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _single_quotes(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise BadWordError("a single quote is not closed")
        start, self._at = self._at, end + 1
        return self._text[start : end + 1] if self._raw_quotes else self._text[start + 1 : end]

    def _double_quotes(self, raw_escapes: bool) -> str:
        quote = '"' if self._raw_quotes else ""
        found = [quote]
        self._at += 1
        while character := self._peek():
            if character == '"':
                self._at += 1
                return "".join([*found, quote])
            if character == "$":
                found.append(self._dollar())
                continue
            self._at += 1
            if character == self._escape:
                if raw_escapes:
                    found.append(character)
                if not self._peek():
                    continue
                if self._peek() in ('"', "$", self._escape):
                    character = self._next()
            found.append(character)
        raise BadWordError("a double quote is not closed")

    def _less_than(self) -> str:
        """Read ``<`` or ``<<``. Spaces after ``<<`` belong to the delimiter of the here-document."""
        start = self._at
        self._at += 1
        if self._peek() == "<":
            self._at += 1
            while self._peek() in ("\t", "\r", " "):
                self._at += 1
        return self._text[start : self._at]

    def _dollar(self) -> str:
        start = self._at
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            return self._text[start : self._at] if self._values is None else self._values.get(name, "")
        self._at += 1
        if self._peek() in ("", "{", "}", ":"):
            raise BadWordError("${ without a name")
        name = self._name()
        operator = self._next()
        if operator == "}":
            value = self._value(name) or ""
        elif operator == "/":
            value = self._replaced(name)
        else:
            value = self._with_operator(name, operator)
        return self._text[start : self._at] if self._values is None else value

    def _value(self, name: str) -> str | None:
        return None if self._values is None else self._values.get(name)

    def _name(self) -> str:
        """Digits, one special character, or letters, digits and underscores; empty where none of these is."""
        first = self._peek()
        start = self._at
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while self._peek().isalpha() or self._peek().isdecimal() or self._peek() == "_":
                self._at += 1
        return self._text[start : self._at]

    def _with_operator(self, name: str, operator: str) -> str:
        empty_counts = operator == ":"
        if empty_counts:
            operator = self._next()
        if operator not in ("+", "-", "?", "#", "%") or (empty_counts and operator in "#%"):
            raise BadWordError(f"${{{name}{':' * empty_counts}{operator}…}} is not a substitution")
        word = self.process("}", raw_escapes=operator in "#%")[0]
        value = self._value(name)
        is_set = value is not None and not (empty_counts and not value)
        if operator == "-":
            return (value or "") if is_set else word
        if operator == "+":
            return word if is_set else ""
        if operator == "?":
            if not is_set and self._values is not None:
                raise BadWordError(f"{name}: {word or 'a value is needed'}")
            return value or ""
        greedy = word.startswith(operator)
        return _trimmed(value or "", word.removeprefix(operator), greedy=greedy, at_end=operator == "%")

    def _replaced(self, name: str) -> str:
        everywhere = self._peek() == "/"
        self._at += everywhere
        pattern = self.process("/", raw_escapes=True)[0]
        replacement = self.process("}", raw_escapes=True)[0]
        value = self._value(name) or ""
        expression = re.compile(_expression(pattern, greedy=True))
        return _replaced(expression, replacement, value, everywhere=everywhere)


@dataclass(slots=True)
class _Words:
    """What was read, whole and split at spaces that stand neither in quotes nor behind an escape."""

    whole: str = ""
    _current: str = ""
    _found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.whole += text
        for character in text:
            if not character.isspace():
                self._current += character
            elif self._current:
                self._found.append(self._current)
                self._current = ""

    def add_whole(self, text: str) -> None:
        self.whole += text
        self._current += text

    def done(self) -> list[str]:
        return [*self._found, *([self._current] if self._current else [])]


def _expression(pattern: str, *, greedy: bool) -> str:
    """A pattern with * and ? as a regular expression. Raises BadWordError for an escape of anything else."""
    found = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            found.append(".*" if greedy else ".*?")
        elif character == "?":
            found.append(".")
        elif character == "\\":
            following = pattern[at : at + 1]
            if following and following in "}/":  # escaped for the sake of ${…} alone
                continue
            if following not in ("*", "?", "\\"):
                raise BadWordError(f"\\{following} is not a valid escape in a pattern")
            found.append(re.escape(following))
            at += 1
        else:
            found.append(re.escape(character))
    return "".join(found)


def _replaced(expression: re.Pattern[str], replacement: str, value: str, *, everywhere: bool) -> str:
    """``value`` with the replacement for the first match, or for all of them.

    Only with all of them BuildKit reads ``$NAME`` in the replacement, as the name of a group: ``$0`` is the
    match, any other is nothing. No match begins empty where the one before it ends.
    """
    if not everywhere:
        return expression.sub(lambda _: replacement, value, count=1)
    found, end = "", 0
    for match in expression.finditer(value):
        if match.start() == match.end() == end > 0:
            continue
        found += value[end : match.start()] + _filled(replacement, match[0])
        end = match.end()
    return found + value[end:]


def _filled(replacement: str, match: str) -> str:
    values = {"$$": "$", "$0": match, "${0}": match}
    return _GROUP.sub(lambda group: values.get(group[0], ""), replacement)


def _trimmed(value: str, pattern: str, *, greedy: bool, at_end: bool) -> str:
    """``value`` without the shortest (``greedy``: longest) beginning or end that the pattern matches."""
    expression = re.compile(_expression(pattern, greedy=greedy))
    if not at_end:
        match = expression.match(value)
        return value[match.end() :] if match else value
    starts = range(len(value) + 1) if greedy else range(len(value), -1, -1)
    return next((value[:start] for start in starts if expression.fullmatch(value, start)), value)


def argument_words(text: str, *, escape: str) -> list[str]:
    """The arguments of ARG, split at unquoted spaces; quotes and escapes stay for `substituted`."""
    words, current, quote = [], "", ""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if not quote and character.isspace():
            if current:
                words.append(current)
            current = ""
        elif character == escape and quote != "'":
            if at < len(text):
                current += character + text[at]
                at += 1
        else:
            if not quote and character in "'\"":
                quote = character
            elif character == quote:
                quote = ""
            current += character
    return [*words, current] if current else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One ``--name=value`` of an instruction: its text without quotes and escapes, and for each of its
    characters where it stands in the line; ``end`` is where the word ends there.
    """

    text: str
    places: tuple[int, ...]
    start: int
    end: int


def flags(line: str, start: int, *, escape: str) -> tuple[list[Flag], int]:
    """The flags of an instruction whose name ends at ``start``, and where what follows them begins."""
    found: list[Flag] = []
    at = start
    while True:
        while at < len(line) and line[at].isspace():
            at += 1
        if not line.startswith("--", at):
            return found, at
        first = at
        characters: list[str] = []
        places: list[int] = []
        quote = ""
        while at < len(line) and (quote or not line[at].isspace()):
            character = line[at]
            if (quote and character == quote) or (not quote and character in "'\""):
                quote = "" if quote else character
                at += 1
                continue
            if character == escape:
                at += 1
                if at == len(line):
                    break
            characters.append(line[at])
            places.append(at)
            at += 1
        text = "".join(characters)
        if text == "--":
            return found, at
        found.append(Flag(text=text, places=tuple(places), start=first, end=at))
