"""OpenVEX (openvex.dev/ns/v0.2.0): statements that a vulnerability does not affect a product, as waivers.

A statement counts for a finding when its product is the package, or the image with the package among its
subcomponents (or without any), by package URL. Of the statements about one product, in all documents, the
latest counts. It must be `not_affected`, with a reason, or `fixed`. One from the future excuses nothing.
OpenVEX knows no end: a statement counts for the policy's `max_age`, or until the first day that its notes
name ("until 2026-12-31"), whichever is earlier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError, FormatError
from pipeline.oci import strict_json
from pipeline.oci.reference import Reference
from pipeline.scan.findings import Finding
from pipeline.scan.policy import Judged
from pipeline.scan.waivers import Waiver
from pipeline.system import untrusted

CONTEXT = "https://openvex.dev/ns"
VERSION = f"{CONTEXT}/v0.2.0"
LIMIT = 16 << 20
_UNTIL = re.compile(r"\buntil (\d{4}-\d{2}-\d{2})\b", re.IGNORECASE)
_LOWER = frozenset({"alpm", "apk", "deb", "github", "bitbucket", "composer", "golang", "npm", "oci", "pypi"})


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Component(_Model):
    id: str = Field(default="", alias="@id")
    identifiers: dict[str, str] = {}

    def purls(self) -> list[str]:
        return [each for each in (self.id, self.identifiers.get("purl", "")) if each.startswith("pkg:")]


class _Product(_Component):
    subcomponents: list[_Component] = []


class _Vulnerability(_Model):
    id: str = Field(default="", alias="@id")
    name: str = ""
    aliases: list[str] = []


class _Statement(_Model):
    vulnerability: _Vulnerability
    products: list[_Product] = []
    status: Literal["not_affected", "affected", "fixed", "under_investigation"]
    timestamp: AwareDatetime | None = None
    last_updated: AwareDatetime | None = None
    justification: str = ""
    impact_statement: str = ""
    status_notes: str = ""
    subcomponents: None = (
        None  # as OpenVEX 0.0.1 has them: left out, the statement would cover the whole image
    )


class Document(_Model):
    """What is read of an OpenVEX document."""

    context: str = Field(alias="@context", pattern=rf"^{CONTEXT}(/v0\.2\.\d+)?$")
    timestamp: AwareDatetime
    statements: list[_Statement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purl:
    """A package URL in parts; of a package that is known by name and version alone, `type` is empty."""

    type: str
    namespace: str
    name: str
    version: str
    qualifiers: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Purl | None:
        """A `pkg:` URL; None for any other text, also for one whose version was left empty behind the `@`."""
        body = text.removeprefix("pkg:").lstrip("/").partition("#")[0]
        path, _, query = body.partition("?")
        kind, _, rest = path.partition("/")
        rest, _, version = rest.strip("/").rpartition("@") if "@" in rest else (rest.strip("/"), "", "")
        namespace, _, name = rest.rpartition("/")
        if body == text or not kind or not name or (path.endswith("@") and not version):
            return None
        kind, name, namespace = kind.lower(), unquote(name), unquote(namespace)
        if kind in _LOWER:
            name, namespace = name.lower(), namespace.lower()
        pairs = (pair.partition("=") for pair in query.split("&") if pair)
        return cls(
            type=kind,
            namespace=namespace,
            name=name.replace("_", "-") if kind == "pypi" else name,
            version=unquote(version),
            qualifiers={key.lower(): unquote(value) for key, _, value in pairs if value},
        )

    def covers(self, other: Purl) -> bool:
        """Whether `other` is what this one names; version and qualifiers that it leaves out are any."""
        if self.name != other.name or (self.version and self.version != other.version):
            return False
        if not other.type:
            return True
        same = (self.type, self.namespace) == (other.type, other.namespace)
        return same and self.qualifiers.items() <= other.qualifiers.items()


def read_files(paths: Iterable[Path]) -> list[Document]:
    """The documents in files. Raises ConfigError naming the file."""
    found = []
    for path in paths:
        try:
            raw = untrusted.read_regular(path, limit=LIMIT)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        found.append(parse(raw, str(path)))
    return found


def parse(raw: bytes, where: str) -> Document:
    """An OpenVEX document, bare or as an in-toto statement, which may be in a DSSE envelope and a bundle.

    Signatures are not verified. Raises ConfigError naming `where`.
    """
    import base64

    try:
        data: Any = strict_json.parse_object(raw, max_size=LIMIT, what=where)
        data = data.get("dsseEnvelope", data)
        if "payload" in data:
            data = strict_json.parse_object(
                base64.b64decode(data["payload"], validate=True), max_size=LIMIT, what=where
            )
        if str(data.get("predicateType", "")).startswith(CONTEXT):
            data = data.get("predicate")
        return Document.model_validate(data)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        place = ".".join(map(str, error["loc"]))
        raise ConfigError(
            f"{where} is no OpenVEX document of version 0.2.0: {place}: {error['msg']}"
        ) from None
    except (FormatError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is no OpenVEX document: {error}") from None


def accepted(
    documents: Sequence[Document],
    findings: Iterable[Finding],
    *,
    image: Reference,
    architecture: str,
    name: str,
    max_age: timedelta,
    now: datetime,
) -> dict[Finding, Waiver]:
    """The findings that a document excuses, each with a waiver; `name` is the image's in images.yaml.

    A waiver may have ended: then it excuses nothing, and people hear of it.
    """
    whole = image_purl(image, architecture)
    said = [
        (one.last_updated or one.timestamp or document.timestamp, one)
        for document in documents
        for one in document.statements
    ]
    waived: dict[Finding, Waiver] = {}
    for finding in findings:
        package = _purl_of(finding)
        for product, part in ((package, None), (whole, package)):
            found = _waiver(said, finding, product, part, name, max_age, now)
            if found and (finding not in waived or found.until > waived[finding].until):
                waived[finding] = found
    return waived


def _waiver(
    said: Sequence[tuple[datetime, _Statement]],
    finding: Finding,
    product: Purl,
    part: Purl | None,
    name: str,
    max_age: timedelta,
    now: datetime,
) -> Waiver | None:
    """What the latest statements about one product say; None when they do not excuse it."""
    about = [
        (time, one)
        for time, one in said
        if _names(one.vulnerability, finding.id)
        if any(_is_product(each, product, part) for each in one.products)
        if time <= now + timedelta(days=1) or not _excuses(one)
    ]
    if not about:
        return None
    newest = max(time for time, _ in about)
    latest = [one for time, one in about if time == newest]
    if not all(_excuses(one) for one in latest):  # of the same time: they must agree
        return None
    ends = [newest.astimezone(timezone.utc).date() + max_age, *(end for one in latest for end in _ends(one))]
    first = latest[0]
    reason = " ".join(filter(None, (first.justification, first.impact_statement))) or first.status
    return Waiver(
        id=finding.id,
        package=finding.package,
        reason=" ".join(reason.split())[:300],
        until=min(ends),
        images=(name,),
        source="VEX statement",
    )


def _excuses(one: _Statement) -> bool:
    return one.status == "fixed" or (
        one.status == "not_affected" and bool((one.justification + one.impact_statement).strip())
    )


def _ends(one: _Statement) -> list[date]:
    try:
        return [date.fromisoformat(found[1]) for found in _UNTIL.finditer(one.status_notes)]
    except ValueError:
        return [date.min]  # a day that does not exist: the statement no longer counts


def _names(vulnerability: _Vulnerability, wanted: str) -> bool:
    return wanted in (vulnerability.id, vulnerability.name, *vulnerability.aliases)


def _is_product(given: _Product, product: Purl, part: Purl | None) -> bool:
    if not _covers(given, product):
        return False
    return part is None or not given.subcomponents or any(_covers(each, part) for each in given.subcomponents)


def _covers(component: _Component, wanted: Purl) -> bool:
    return any(parsed.covers(wanted) for parsed in map(Purl.parse, component.purls()) if parsed)


def _purl_of(finding: Finding) -> Purl:
    known = Purl.parse(finding.purl)
    return known or Purl(type="", namespace="", name=finding.package, version=finding.version, qualifiers={})


def image_purl(image: Reference, architecture: str) -> Purl:
    """An image as the product of a statement; `architecture` such as ``amd64``."""
    return Purl(
        type="oci",
        namespace="",
        name=image.repository.rpartition("/")[2].lower(),
        version=str(image.digest or ""),
        qualifiers={"arch": architecture, "repository_url": f"{image.registry}/{image.repository}"},
    )


def statements(judged: Iterable[Judged], image: Reference, *, today: date) -> list[dict[str, Any]]:
    """OpenVEX statements for the findings that a waiver accepts today; the waiver's end is in the notes."""
    place = quote(f"{image.registry}/{image.repository}", safe="")
    whole = f"pkg:oci/{image.repository.rpartition('/')[2]}@{quote(str(image.digest))}?repository_url={place}"
    found = []
    for one in judged:
        if one.waiver is None or one.waiver.source != "waiver" or one.waiver.until < today:
            continue
        package = one.finding.purl or f"pkg:generic/{quote(one.finding.package, safe='')}"
        found.append(
            {
                "vulnerability": {"name": one.finding.id},
                "products": [{"@id": whole, "subcomponents": [{"@id": package}]}],
                "status": "not_affected",
                "impact_statement": one.waiver.reason,
                "status_notes": f"accepted by a waiver until {one.waiver.until}",
            }
        )
    return found


def document(made: Sequence[Mapping[str, Any]], *, author: str, now: datetime) -> bytes:
    """An OpenVEX document as JSON; its @id is made of what it says."""
    import hashlib

    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    data = {
        "@context": VERSION,
        "@id": f"urn:sqshpipe:vex:{digest}",
        "author": author,
        "timestamp": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "version": 1,
        "statements": list(made),
    }
    return (json.dumps(data, indent=2) + "\n").encode()
