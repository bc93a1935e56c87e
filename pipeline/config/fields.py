"""Types of values in images.yaml and cluster.yaml, for pydantic: times, sizes, names, references."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from pipeline.config import names
from pipeline.config.quantities import parse_duration, parse_size
from pipeline.errors import ConfigError, SqshpipeError
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

T = TypeVar("T")


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """A validator that reports the error of one of our own parsers, and keeps the text."""

    def validate(text: str) -> str:
        try:
            check(text)
        except SqshpipeError as error:
            raise ValueError(str(error)) from None
        return text

    return AfterValidator(validate)


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    return _quantity(parse_duration, value)


def _slurm_time(value: object) -> object:
    """A Duration, or Slurm's own forms: minutes, MM:SS, HH:MM:SS, DAYS-HH, DAYS-HH:MM, DAYS-HH:MM:SS."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return timedelta(minutes=value)
    form = r"(?:([0-9]{1,3})-)?([0-9]{1,4})(?::([0-9]{2}))?(?::([0-9]{2}))?"
    match = re.fullmatch(form, value) if isinstance(value, str) else None
    if match is None:
        try:
            return _duration(value)
        except ValueError:
            raise ValueError("write a time such as 90m, 2h, 00:05:00 or 2-00:00:00") from None
    days, *rest = match.groups()
    given = [int(each) for each in rest if each is not None]
    # without days a number alone is minutes, and two are minutes and seconds
    units = ("hours", "minutes", "seconds") if days or len(given) == 3 else ("minutes", "seconds")
    time = timedelta(days=int(days or 0), **dict(zip(units, given, strict=False)))
    if time < timedelta(minutes=1):
        raise ValueError("Slurm counts minutes: at least one")
    return time


def _block_size(value: object) -> object:
    size = _quantity(parse_size, value)
    if not (4096 <= size <= 1 << 20) or size & (size - 1):
        raise ValueError("write a power of two from 4K to 1M, such as 128K")
    return size


def _size(value: object) -> object:
    return _quantity(parse_size, value)


def _quantity(parse: Callable[[str], T], value: object) -> T:
    """`parse` applied to a value from YAML: text, or a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("write it as text, such as 30d or 50G")
    try:
        return parse(str(value))
    except ConfigError as error:
        raise ValueError(error.hint or error.message) from None


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]*[smhdw]$", "examples": ["12h", "30d"]}),
]
SlurmTime = Annotated[
    timedelta,
    BeforeValidator(_slurm_time),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["2h", "00:05:00", "2-00:00:00"]}),
]
BlockSize = Annotated[
    int,
    BeforeValidator(_block_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["128K", "1M"]}),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["64G", "1T"]}),
]
ReferenceText = Annotated[str, _checked(Reference.parse)]
PlatformText = Annotated[str, _checked(Platform.parse)]
ImageName = Annotated[str, _checked(names.check_image)]
Channel = Annotated[str, _checked(names.check_channel)]
ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
