"""JSON from strangers, read so that no two readers can understand it differently.

Refused: duplicate keys, NaN and Infinity, numbers beyond 64 bits, deep nesting, what is not UTF-8, and
keys that differ from a wanted one in case alone (Go's decoder would take them, ours would not).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pipeline.errors import FormatError

MAX_DEPTH = 32
_MAX_DIGITS = 19


def parse_object(raw: bytes, *, max_size: int, what: str) -> dict[str, Any]:
    """Parse `raw`, a JSON object of at most `max_size` bytes. `what` names it in FormatError's sentence."""
    if len(raw) > max_size:
        raise FormatError(f"{what} has {len(raw)} bytes, more than the {max_size} that are allowed")
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except _RefusedError as error:
        raise FormatError(f"{what} {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise FormatError(f"{what} is nested too deeply") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:  # else it cannot be deeper
        _check_depth(value, what)
    if rb"\u" in raw and not _is_text(value):
        raise FormatError(f"{what} holds half of a surrogate pair, which is not valid text")
    return value


class _RefusedError(Exception):
    """What a hook of the decoder refuses; the text continues a sentence."""


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS and len(digits.lstrip("-")) > _MAX_DIGITS:
        raise _RefusedError("holds a number beyond 64 bits")
    return int(digits)


def _constant(name: str) -> NoReturn:
    raise _RefusedError(f"holds {name}, which is not JSON")


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        twice = next(name for name, times in Counter(name for name, _ in items).items() if times > 1)
        raise _RefusedError(f"has the key {twice[:80]!r} twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_constant=_constant)
"""Made once: making one takes as long as reading a small object."""


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_depth(value: object, what: str) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise FormatError(f"{what} is nested more than {MAX_DEPTH} deep")


def check_case(value: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse keys that are a `known` one but for upper and lower case, as Unicode folds it: so does Go."""
    folded = {name.casefold(): name for name in known}
    for key in value:
        wanted = folded.get(key.casefold())
        if wanted is not None and wanted != key:
            raise FormatError(f"{what} has the key {key!r} where {wanted!r} is meant")


def text(value: Mapping[str, Any], key: str, what: str) -> str:
    """The string under `key`; absent and null are empty. Raises FormatError for another type."""
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise FormatError(f"{what}: {key!r} is not a string")
    return found


def integer(value: Mapping[str, Any], key: str, what: str) -> int:
    """The whole number, zero or more, that must be under `key`."""
    found = value.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 63:
        raise FormatError(f"{what}: {key!r} is not a size")
    return found


def texts(value: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    """The list of strings under `key`; absent and null are empty, one bare string is a list of one."""
    found = value.get(key)
    if found is None:
        return ()
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise FormatError(f"{what}: {key!r} is not a list of strings")
    return tuple(found)


def mapping(value: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    """The object under `key`; absent and null are empty."""
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise FormatError(f"{what}: {key!r} is not an object")
    return found


def text_mapping(value: Mapping[str, Any], key: str, what: str) -> dict[str, str]:
    """The object of strings under `key`; absent and null are empty."""
    found = mapping(value, key, what)
    if not all(isinstance(item, str) for item in found.values()):
        raise FormatError(f"{what}: {key!r} has a value that is not a string")
    return found
