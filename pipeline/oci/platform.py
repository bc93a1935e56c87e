"""What an image runs on (OCI image-spec, image-index.md; names are those of Go's GOOS and GOARCH)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError

_PART = re.compile(r"[A-Za-z0-9_.-]+")
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}
# The variant that an architecture has when none is said.
_BASELINE = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """os/architecture[/variant]."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `linux/amd64` or `linux/arm64/v8`, or uname's names (x86_64). Raises ConfigError."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
            raise ConfigError(
                f"{text[:80]!r} is not a platform", hint="write os/architecture, such as linux/amd64"
            )
        os_name, architecture, *variant = (part.lower() for part in parts)
        return cls(
            os=os_name,
            architecture=_ARCHITECTURES.get(architecture, architecture),
            variant=variant[0] if variant else "",
        )

    @property
    def is_unknown(self) -> bool:
        """True for `unknown/unknown`, by which builders mark attestations inside an index."""
        return "unknown" in (self.os, self.architecture)

    def matches(self, other: Platform) -> bool:
        """Whether `other`, which an image offers, serves where `self` is wanted.

        No variant wanted takes any; a wanted variant must be offered (no variant offered is the
        architecture's baseline: arm64 is v8, arm is v7, amd64 is v1).
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        if not self.variant:
            return True
        return self.variant == (other.variant or _BASELINE.get(other.architecture, ""))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
