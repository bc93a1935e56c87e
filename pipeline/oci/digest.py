"""Content digests: the only identity that anything here relies on (OCI image-spec, descriptor.md#digests)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import FormatError

if TYPE_CHECKING:
    from hashlib import _Hash

_ALGORITHMS = {"sha256": 64, "sha512": 128}
_ALGORITHM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Digest:
    """`algorithm:hex`, valid by construction: sha256 or sha512 with lower-case hex of the right length."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _ALGORITHMS.get(self.algorithm)
        if length is None:
            known = " and ".join(sorted(_ALGORITHMS))
            raise FormatError(
                f"digest algorithm {self.algorithm[:40]!r} is not known",
                hint=f"images are identified by {known}; push the image again with a current tool",
            )
        if len(self.hex) != length or not _HEX.fullmatch(self.hex):
            raise FormatError(
                f"{self.algorithm} digest {self.hex[:140]!r} is not {length} lower-case hex digits"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha256:…`. Raises FormatError."""
        algorithm, colon, value = text.partition(":")
        if not colon or not _ALGORITHM.fullmatch(algorithm):
            raise FormatError(
                f"{text[:140]!r} is not a digest", hint="a digest looks like sha256:<64 hex digits>"
            )
        return cls(algorithm=algorithm, hex=value)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 of `data`."""
        return cls(algorithm="sha256", hex=hashlib.sha256(data).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hashlib object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def check(self, data: bytes, what: str) -> None:
        """Raise FormatError unless `data` has this digest; `what` names the data in the sentence."""
        hasher = self.hasher()
        hasher.update(data)
        if hasher.hexdigest() != self.hex:
            raise FormatError(f"{what} has digest {self.algorithm}:{hasher.hexdigest()}, not {self}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
