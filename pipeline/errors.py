"""The exceptions that end a command, each with the exit code that scripts rely on.

    SqshpipeError            1  unexpected
    ├── ConfigError          2  usage or configuration
    ├── ToolError            3  a tool is missing or failed
    ├── RegistryError        4  a registry refused, lied or could not be reached
    ├── ScanRejected         5  the scan gate did not pass
    ├── FormatError          6  bad OCI or squashfs bytes
    │   └── LimitError          more than an image may have
    ├── VerificationError    7  a .sqsh is not what it should be
    └── PublishError         8  the store refused, or a version is taken

`UnsupportedByConverter` is not a kind of its own: it marks errors that another converter would not raise.

``message`` says what happened with which file or reference; ``details`` are the lines below it, such as what
a tool printed last; ``hint`` says what to do about it. None may hold a secret: all are printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pipeline.text import escaped

EXIT_DONE = 0
EXIT_PLAN_HAS_CHANGES = 10
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class SqshpipeError(Exception):
    """A foreseeable end of a command, printed as one sentence and never as a traceback.

    Sentence, hint and each of the details are one line, and text of others in them is escaped: nothing but
    `details` makes further lines. `headline` is the sentence alone, `message` the sentence and the details.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.headline = escaped(message)
        self.details = tuple(escaped(line.expandtabs()) for line in details)
        self.message = "\n".join((self.headline, *self.details))
        self.hint = escaped(hint)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SqshpipeError):
    """Usage or configuration: images.yaml, images.lock, a flag or an environment variable."""

    exit_code = 2


class ToolError(SqshpipeError):
    """A program or daemon that we drive is missing, too old, or failed; also a full disk."""

    exit_code = 3


class RegistryError(SqshpipeError):
    """A registry refused, could not be reached, or answered with something else than asked for."""

    exit_code = 4


class ScanRejected(SqshpipeError):
    """The scan gate did not pass: findings that block, or no complete result."""

    exit_code = 5


class FormatError(SqshpipeError):
    """Bytes that are not valid OCI, tar or squashfs, or that try to leave the root."""

    exit_code = 6


class LimitError(FormatError):
    """An image that may be sound, but is larger than `limits` allow: in bytes, members, names or ratio."""


class VerificationError(SqshpipeError):
    """A .sqsh that differs from the image that it was made from, or from its record."""

    exit_code = 7


class PublishError(SqshpipeError):
    """The store cannot take a release: taken version, damaged record, no permission."""

    exit_code = 8


class UnsupportedByConverter(Exception):
    """Marks the end of one converter that another would not have met with the same image."""

    headline: str
