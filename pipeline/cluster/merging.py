"""Merges a user's additions into a rendered structure, such as the cluster file."""

from __future__ import annotations

from typing import Any


def merged(below: Any, above: Any) -> Any:
    """`below` with `above` on it.

    Mappings are merged key by key, and null removes a key. In a list, entries with the same Name (a queue, a
    compute resource, a file system) are merged and all others are appended. Anything else is replaced.
    """
    if isinstance(below, dict) and isinstance(above, dict):
        made = {**below, **{name: merged(below.get(name), each) for name, each in above.items()}}
        return {name: each for name, each in made.items() if each is not None}
    if isinstance(below, list) and isinstance(above, list):
        return _lists(below, above)
    return _without_nulls(above)


def _lists(below: list[Any], above: list[Any]) -> list[Any]:
    made = list(below)
    for each in above:
        place = next(
            (n for n, old in enumerate(made) if _name(old) is not None and _name(old) == _name(each)), None
        )
        if place is not None:
            made[place] = merged(made[place], each)
        elif each not in made:
            made.append(_without_nulls(each))
    return made


def _name(entry: Any) -> Any:
    return entry.get("Name") if isinstance(entry, dict) else None


def _without_nulls(value: Any) -> Any:
    return merged({}, value) if isinstance(value, dict) else value
