"""Templates that are filled with checked values; an undefined name is an error."""

from __future__ import annotations

import shlex
from functools import cache

import jinja2


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.cluster", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - shell, YAML and slurm.conf, not HTML; values are checked or quoted by `sh`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["sh"] = lambda value: shlex.quote(str(value))
    return made


def render(name: str, **values: object) -> str:
    """Fill pipeline/cluster/templates/NAME.j2."""
    return _environment().get_template(f"{name}.j2").render(**values)
