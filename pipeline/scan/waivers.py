"""waivers.yaml: findings that are accepted for a time, each with its reason and its last day.

version: 1
waivers:
  - id: CVE-2024-1234
    package: openssl
    reason: the affected function is not reachable from training
    until: 2026-12-31
    images: [megatron-training]     # all images if left out
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config import yamlfile
from pipeline.scan.findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """``until`` is the last day on which it holds. No ``images``: it holds for all images."""

    id: str
    package: str
    reason: str
    until: date
    images: tuple[str, ...] = ()
    source: str = "waiver"

    def covers(self, finding: Finding, image: str) -> bool:
        """Whether it is about this finding in this image, whatever the day."""
        about = self.id == finding.id and self.package == finding.package
        return about and (not self.images or image in self.images)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Waiver(_Model):
    id: str = Field(min_length=1)
    package: str = Field(min_length=1)
    reason: str = Field(min_length=10)
    until: date
    images: list[str] = []

    @field_validator("until", mode="before")
    @classmethod
    def _a_day(cls, value: object) -> object:
        # YAML reads an unquoted day as a date by itself; in quotes it is text
        if isinstance(value, str):
            try:
                return date.fromisoformat(value)
            except ValueError:
                raise ValueError("write the last day as in 2026-12-31") from None
        return value

    @field_validator("id", "package")
    @classmethod
    def _no_patterns(cls, value: str) -> str:
        if "*" in value or "?" in value:
            raise ValueError("a waiver is for one finding in one package; patterns are not taken")
        return value


class _File(_Model):
    version: Literal[1]
    waivers: list[_Waiver]


def read_waivers(path: Path | None) -> tuple[Waiver, ...]:
    """The waivers at ``path``, none for None. ConfigError names file, line and key."""
    if path is None:
        return ()
    source = yamlfile.read(path)
    try:
        file = _File.model_validate(source.value)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        hint = "each waiver has id, package, reason, until, and perhaps images"
        raise source.error(error["loc"], error["msg"], hint) from None
    return tuple(
        Waiver(id=one.id, package=one.package, reason=one.reason, until=one.until, images=tuple(one.images))
        for one in file.waivers
    )
