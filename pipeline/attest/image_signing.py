"""Signatures on an image in its registry: ECR's own, notation's, cosign's. Which one is there is recorded,
none is faked.

ECR's managed signing needs nothing from us; its signature appears as a referrer. notation signs with the
key that its own
configuration names (the AWS Signer plugin there), cosign with COSIGN_KEY (a file or ``awskms://…``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipeline.docker.config import docker_config
from pipeline.errors import ToolError
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from pipeline.registry.referrers import Referrer
from pipeline.system import process
from pipeline.system.http import plain_http_allowed

_NOTATION_TYPE = "application/vnd.cncf.notary.signature"
_COSIGN_TYPES = ("application/vnd.dev.cosign.artifact.sig.v1+json", "application/vnd.dev.sigstore.bundle")
_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Whether an image is signed.

    ``tool`` is the name of the program that signed it, empty when none did. ``why`` is a sentence for people.
    """

    status: Literal["signed", "unsigned", "failed"]
    tool: str
    why: str

    def as_json(self) -> dict[str, str]:
        return {"status": self.status, "tool": self.tool, "why": self.why}


def found_among(referrers: Iterable[Referrer]) -> Signature | None:
    """A signature among the referrers, found by its type; it is not verified. None: there is no signature."""
    for one in referrers:
        if one.artifact_type == _NOTATION_TYPE:
            return Signature(status="signed", tool="notation", why=f"signature {one.digest}")
        if one.artifact_type.startswith(_COSIGN_TYPES):
            return Signature(status="signed", tool="cosign", why=f"signature {one.digest}")
    return None


def sign(image: Reference, credentials: Credentials | None = None) -> Signature:
    """Sign ``image`` (a reference with a digest) with notation, else with cosign when COSIGN_KEY is set.

    Raises nothing when signing fails: the status of the result says so, and is "unsigned" without a tool.

    ``credentials`` are for the image's registry; without them the tools' own logins are used.
    """
    for tool, words in _commands(image):
        try:
            program = process.which(tool, hint="")
        except ToolError:
            continue
        try:
            with _access(tool, image, credentials) as environment:
                process.run([program, *words], extra_env=environment, timeout=_TIMEOUT)
        except ToolError as error:
            return Signature(status="failed", tool=tool, why=error.headline[:300])
        return Signature(status="signed", tool=tool, why=f"{tool} signed {image.digest}")
    why = "neither notation nor cosign with COSIGN_KEY is set up here, and ECR has made no signature"
    return Signature(status="unsigned", tool="", why=why)


def _commands(image: Reference) -> list[tuple[str, list[str]]]:
    plain = plain_http_allowed(image.registry)
    commands = [("notation", ["sign", *(["--insecure-registry"] if plain else []), str(image)])]
    key = os.environ.get("COSIGN_KEY", "")
    if key:
        # the key's name, not the key: cosign takes COSIGN_PASSWORD from the environment
        words = ["sign", "--yes", "--tlog-upload=false", "--key", key]
        commands.append(("cosign", [*words, *(["--allow-http-registry"] if plain else []), str(image)]))
    return commands


@contextmanager
def _access(tool: str, image: Reference, credentials: Credentials | None) -> Iterator[Mapping[str, str]]:
    """The environment in which ``tool`` may write to the image's registry; no password in an argument."""
    if credentials is None:
        yield {}
    elif tool == "notation" and not credentials.identity_token:
        yield {"NOTATION_USERNAME": credentials.username, "NOTATION_PASSWORD": credentials.password}
    else:
        with docker_config({image.registry: credentials}) as folder:
            yield {"DOCKER_CONFIG": str(folder)}
