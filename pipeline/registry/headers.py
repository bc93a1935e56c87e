"""What two header fields of a registry say: `WWW-Authenticate` (RFC 9110, 11.6.1) and `Link` (RFC 8288).

Both are lists whose members are separated by commas, and a comma may stand in quotes or in an address. Every
character is looked at a fixed number of times, so a header of any length takes time in proportion to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urldefrag, urljoin

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110
_BLANK = " \t"
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

Parameters = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way to sign in: the scheme in lower case, and its parameters with their names in lower case."""

    scheme: str
    parameters: Parameters

    def get(self, name: str) -> str:
        """The value of the parameter; empty where it is missing."""
        return _value(self.parameters, name)


def parse_challenges(line: str) -> tuple[Challenge, ...]:
    """Every challenge of one ``WWW-Authenticate`` line, in their order.

    A member that cannot be read is left out: it hides none of the others. A token68, which carries no
    parameters, is left out too.
    """
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for member in _split(line, ","):
        scheme, parameter = _challenge_member(member)
        if scheme:
            found.append((scheme, []))
        if parameter is not None and found:
            found[-1][1].append(parameter)
    return tuple(Challenge(scheme=scheme, parameters=tuple(parameters)) for scheme, parameters in found)


def next_address(lines: Iterable[str], address: str) -> str | None:
    """Where the list at ``address`` continues, as an absolute address; None at its end.

    It is the first link whose relation types contain ``next``. A link with an ``anchor`` is about something
    else than ``address`` and does not count. Raises ValueError for a target that is not an address.
    """
    for line in lines:
        for member in _split(line, ","):
            if not member.startswith("<"):
                continue
            target, closed, rest = member[1:].partition(">")
            if not closed:
                continue
            parameters = tuple(_parameters(_split(rest, ";")))
            anchor = _value(parameters, "anchor")
            if anchor and urljoin(address, anchor) != address:
                continue
            if "next" in _value(parameters, "rel").lower().split():
                return resolve(address, target.strip(_BLANK))
    return None


def resolve(base: str, reference: str) -> str:
    """``reference`` seen from ``base``, as an absolute address without a fragment (RFC 3986, 5).

    Raises ValueError for what is not an address.
    """
    return urldefrag(urljoin(base, reference)).url


def _value(parameters: Parameters, name: str) -> str:
    """The first one counts (RFC 8288, 3.3)."""
    return next((value for key, value in parameters if key == name), "")


def _split(text: str, separator: str) -> Iterator[str]:
    """The members of a list: ``separator`` inside quotes or inside ``<…>`` does not end one."""
    start, position, end = 0, 0, len(text)
    blank = True  # nothing of this member was seen yet
    while position < end:
        char = text[position]
        if char == '"':
            position = _end_of_quotes(text, position)
        elif char == "<" and blank:
            closing = text.find(">", position)
            position = closing + 1 if closing >= 0 else end
        elif char == separator:
            yield text[start:position].strip(_BLANK)
            start = position = position + 1
            blank = True
            continue
        else:
            position += 1
        blank = blank and char in _BLANK
    yield text[start:].strip(_BLANK)


def _end_of_quotes(text: str, start: int) -> int:
    """The position behind the string quoted from ``start`` on; beyond the text where nothing closes it."""
    position = start + 1
    while position < len(text):
        if text[position] == '"':
            return position + 1
        position += 2 if text[position] == "\\" else 1
    return len(text) + 1


def _challenge_member(member: str) -> tuple[str, tuple[str, str] | None]:
    """The scheme that begins with this member, or empty, and the parameter in it, or None."""
    name = _NAME.match(member)
    if name is None:
        return "", None
    rest = member[name.end() :]
    if rest.lstrip(_BLANK).startswith("="):
        return "", _parameter(member)
    if rest and rest[0] not in _BLANK:
        return "", None
    return name[0].lower(), _parameter(rest.strip(_BLANK))


def _parameters(members: Iterable[str]) -> Iterator[tuple[str, str]]:
    for member in members:
        parameter = _parameter(member)
        if parameter is not None:
            yield parameter


def _parameter(text: str) -> tuple[str, str] | None:
    """``name=value``, blanks around the sign allowed; None for anything else, a token68 among it."""
    name = _NAME.match(text)
    if name is None:
        return None
    rest = text[name.end() :].lstrip(_BLANK)
    if not rest.startswith("="):
        return None
    value = rest[1:].lstrip(_BLANK)
    if value.startswith('"'):
        if _end_of_quotes(value, 0) != len(value):
            return None
        return name[0].lower(), _QUOTED_PAIR.sub(r"\1", value[1:-1])
    # real registries send addresses without quotes, which the grammar does not allow
    if not value or value.startswith("=") or any(blank in value for blank in _BLANK):
        return None
    return name[0].lower(), value
