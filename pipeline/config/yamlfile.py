"""YAML with line numbers, for errors that point at the line.

Scalars follow the YAML 1.2 core schema: ``yes``, ``12:30:00`` and ``2024-01-01`` stay text, as people expect.
Duplicate keys are refused: the 1.1 loaders silently take the last one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.system import untrusted

Key = tuple[str | int, ...]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of the 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$", re.IGNORECASE), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file: its value, and for each key path the line (from 1) where the key stands.

    `texts` has each scalar as it was typed: `4.10` is the number 4.1, but its text is `4.10`.
    """

    path: Path
    value: Any
    lines: Mapping[Key, int]
    texts: Mapping[Key, str]

    def line(self, key: Key) -> int:
        """The line of ``key``, or of the nearest parent that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def error(self, key: Key, problem: str, hint: str = "") -> ConfigError:
        """A ConfigError that names file, line and key."""
        return ConfigError(f"{self.where(key)}: {problem}", hint=hint)

    def where(self, key: Key) -> str:
        """``images.yaml, line 12, images.demo.base``."""
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
        return f"{self.path}, line {self.line(key)}" + (f", {dotted}" if dotted else "")


def read(path: Path, *, missing_hint: str = "") -> Document:
    """Parse ``path``; ConfigError when it is missing, unreadable, too large, no YAML, or has a key twice."""
    try:
        raw = content(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint=missing_hint) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 20} MiB", hint="is this the right file?")
    return parse(raw, path)


def content(path: Path) -> bytes:
    """The bytes of a file of a checkout, which others wrote: a pipe of that name is not waited for.

    One byte more than `read` takes is the most. Raises OSError, also for what is not a regular file.
    """
    with os.fdopen(untrusted.open_regular(path, follow=True), "rb") as file:
        return file.read(_MAX_BYTES + 1)


def parse(raw: bytes, path: Path) -> Document:
    """Parse ``raw``; errors name ``path``. Raises ConfigError for invalid YAML and for repeated keys."""
    try:
        text = raw.decode("utf-8")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            builder = _Builder(loader, path)
            value = None if node is None else builder.value(node, ())
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    return Document(path=path, value=value, lines=builder.lines, texts=builder.texts)


class _Builder:
    """Values from nodes, with the line and the text of each; bounded, so that aliases cannot fill memory."""

    def __init__(self, loader: _Loader, path: Path) -> None:
        self.loader, self.path = loader, path
        self.lines: dict[Key, int] = {}
        self.texts: dict[Key, str] = {}
        self.nodes = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.nodes += 1
        self.lines.setdefault(key, node.start_mark.line + 1)
        if self.nodes > _MAX_NODES or len(key) > _MAX_DEPTH:
            raise ConfigError(
                f"{self.path}, line {node.start_mark.line + 1}: nested too deep, or too many values"
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            self.texts[key] = node.value
        return self.loader.construct_object(node)

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        self.refuse_duplicates(node)
        self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            inner = (*key, name)
            self.lines[inner] = name_node.start_mark.line + 1
            result[name] = self.value(value_node, inner)
        return result

    def refuse_duplicates(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for name_node, _ in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError(f"{self.path}, line {line}: a key must be plain text")
            if name_node.value in seen:
                first = seen[name_node.value]
                raise ConfigError(
                    f"{self.path}, line {line}, {name_node.value}: given twice, also on line {first}",
                    hint="remove one of them",
                )
            seen[name_node.value] = line
