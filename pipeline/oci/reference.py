"""Names of images: `[registry/]repository[:tag][@digest]`.

The grammar is the one of the distribution project (reference/reference.go, reference/regexp.go), put together
from named parts below; short names are completed as docker does: `ubuntu` is docker.io/library/ubuntu.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from pipeline.errors import ConfigError, FormatError
from pipeline.oci.digest import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255

_label = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_host_name = rf"{_label}(?:\.{_label})*"
_ipv6 = r"\[[a-fA-F0-9:]+\]"
_port = r"(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_registry = rf"(?:{_host_name}|{_ipv6})(?::{_port})?"
_alphanumeric = r"[a-z0-9]+"
_separator = r"(?:[._]|__|-+)"
_path_component = rf"{_alphanumeric}(?:{_separator}{_alphanumeric})*"
_repository = rf"{_path_component}(?:/{_path_component})*"
_tag = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"

REGISTRY_PATTERN = re.compile(_registry)
REPOSITORY_PATTERN = re.compile(_repository)
TAG_PATTERN = re.compile(_tag)
_ONLY_HEX = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image's name with everything spelled out; `tag` and `digest` are None when not given.

    With both, the digest is what counts and the tag is there for people.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if not REGISTRY_PATTERN.fullmatch(self.registry):
            raise ConfigError(f"{self.registry[:120]!r} is not a registry", hint="write host or host:port")
        if not REPOSITORY_PATTERN.fullmatch(self.repository):
            hint = "names are lower-case letters and digits, parted by / . _ or -"
            if REPOSITORY_PATTERN.fullmatch(self.repository.lower()):
                hint = f"repository names are lower case: {self.repository.lower()}"
            raise ConfigError(f"{self.repository[:120]!r} is not a repository name", hint=hint)
        if len(self.name) > MAX_NAME:
            raise ConfigError(f"image name {self.name[:60]}… is longer than {MAX_NAME} characters")
        if self.tag is not None and not TAG_PATTERN.fullmatch(self.tag):
            raise ConfigError(
                f"{self.tag[:140]!r} is not a tag",
                hint="a tag is at most 128 letters, digits, _ . or -, and begins with none of . and -",
            )

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a name as people write it. Raises ConfigError with what is wrong and how to write it."""
        if "://" in text:
            better = plain_name(text)
            hint = "leave out what stands before ://" + (f": write {better[:200]}" if better else "")
            raise ConfigError(f"{text[:200]!r} is not an image name", hint=hint)
        if "#" in text:
            raise ConfigError(
                f"{text[:200]!r} is written in enroot's way, with '#' after the registry",
                hint=f"write {plain_name(text)[:200] or 'HOST/NAME:TAG'}",
            )
        if _ONLY_HEX.fullmatch(text):
            raise ConfigError(f"{text!r} is 64 hex digits, not a name", hint="write NAME@sha256:<hex>")
        name, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except FormatError as error:
                raise ConfigError(f"{text[:300]!r}: {error.message}", hint=error.hint) from None
        tag: str | None = None
        head, colon, last = name.rpartition(":")
        if colon and "/" not in last:
            name, tag = head, last
        registry, repository = _split_registry(name)
        try:
            return cls(registry=registry, repository=repository, tag=tag, digest=digest)
        except ConfigError as error:
            raise ConfigError(
                f"{text[:300]!r} is not an image name: {error.message}", hint=error.hint
            ) from None

    @property
    def name(self) -> str:
        """`host/repository`, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def identifier(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag, else `latest`."""
        return str(self.digest) if self.digest else (self.tag or DEFAULT_TAG)

    def with_tag(self, tag: str | None) -> Reference:
        """The same repository under `tag`, without a digest."""
        return dataclasses.replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest | None) -> Reference:
        """The same name and tag, at `digest`."""
        return dataclasses.replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def plain_name(text: str) -> str:
    """An image's name without scheme, user and enroot's ``#``: what people should write; empty if unclear.

    ``dockerd://x`` gives ``x``, ``docker://USER@HOST:5000#/team/x:v1`` gives ``HOST:5000/team/x:v1``.
    """
    rest = text.rpartition("://")[2]
    if "#" in rest:
        host, _, path = rest.partition("#")
        rest = f"{host.rpartition('@')[2]}/{path.lstrip('/')}"
    rest = rest.strip("/")
    if "#" in rest:
        return ""
    try:
        Reference.parse(rest)
    except ConfigError:
        return ""
    return rest


def _split_registry(name: str) -> tuple[str, str]:
    """Part `name` into registry and repository by docker's rule.

    The first component is a registry if it holds a dot, a colon or a capital, or is `localhost`.
    """
    first, slash, rest = name.partition("/")
    is_registry = bool(slash) and (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    )
    registry, repository = (first, rest) if is_registry else (DEFAULT_REGISTRY, name)
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository
