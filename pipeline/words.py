"""Words of others, made fit for people: text that can neither move, hide nor reorder its surroundings."""

from __future__ import annotations

import re

_LONGEST = 400
_MARKUP = re.compile(r"[\\`*_\[\]<>|~!#&]")


def escaped(text: str) -> str:
    """`text` with control and direction characters escaped: it can move no cursor and fake no line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(value: object, *, longest: int = _LONGEST) -> str:
    """`value` as one line: control and direction characters escaped, cut at `longest` characters."""
    text = value if isinstance(value, str) else str(value)
    return escaped(text[:longest]) + ("…" if len(text) > longest else "")


def markdown(value: object, *, longest: int = _LONGEST) -> str:
    """`value` as one line of Markdown that is text alone: no link, picture, tag, table or mention."""
    return _MARKUP.sub(r"\\\g<0>", shown(value, longest=longest)).replace("@", "@\u200b")
