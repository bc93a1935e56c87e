"""One ECR out of two parts: moto for the control plane, docker-registry for the bytes, and this before both.

It behaves as ECR was seen to: passwords of 12 hours that end in a 403, no repository without
CreateRepository, immutable
tags that refuse even the same image, blobs by redirect from an "S3" that refuses Authorization, scan
results that play
through states. Every request can be made to fail as `tests.support.servers.registry.Fault` says.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import secrets
import socket
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from demo.registry import PrivateRegistry
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_INDEX
from tests.support.servers import aws
from tests.support.servers.registry import Fault, FaultyProxy, Seen, _Forwarder, error_body, serving

HOST = f"{aws.ACCOUNT}.dkr.ecr.{aws.REGION}.amazonaws.com"
_TARGET = "AmazonEC2ContainerRegistry_V20150921."
_HOURS = 12 * 3600
_SIGNED = (
    f"AWS4-HMAC-SHA256 Credential=x/20260101/{aws.REGION}/ecr/aws4_request, SignedHeaders=host, Signature=x"
)


class EcrFront(FaultyProxy):
    """ECR on loopback. ``address`` serves registry and control plane. A context manager.

    ``scans`` holds for each digest the answers that DescribeImageScanFindings plays, the last for ever;
    what is not in it
    plays ``every``, and has no scan where that is empty. ``denied`` names actions (``PutImage``) that are
    refused, ``granted`` (unless None) all that are not; ``used`` gathers what was asked for, registry and
    control plane alike. ``clock`` turns its time forward, in seconds.
    """

    def __init__(self, bind: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__("", bind)
        self.moto = ""
        self.scans: dict[str, list[dict[str, Any]]] = {}
        self.every: list[dict[str, Any]] = []
        self.denied: set[str] = set()
        self.granted: set[str] | None = None
        self.used: set[str] = set()
        self.attached: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.folder = Path()
        self.throttled: dict[str, int] = {}
        self.calls: list[str] = []
        self.clock = 0.0
        self.passwords: dict[str, float] = {}
        self.putting = threading.Lock()

    def __enter__(self) -> EcrFront:  # noqa: PYI034 - Self is not in Python 3.10
        front = self

        class Handler(_EcrHandler):
            owner = front

        self.moto = urlsplit(self._stack.enter_context(aws.moto_server())).netloc
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        registry = PrivateRegistry(auth="")
        self._stack.callback(registry.stop)
        self.upstream = registry.start(self.folder)
        self.address = self._stack.enter_context(serving(Handler, self._bind))
        return self

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Let boto3 and the registry client of this process find it under ECR's real host name."""
        aws.use(monkeypatch, f"http://{self.moto}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{self.address}")
        monkeypatch.setenv("SQSHPIPE_PLAIN_HTTP", HOST)
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        real, port = socket.getaddrinfo, int(self.address.rpartition(":")[2])

        def resolve(host: Any, *more: Any, **named: Any) -> Any:
            if host == HOST:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
            return real(host, *more, **named)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    def now(self) -> float:
        return time.time() + self.clock

    def new_password(self) -> tuple[str, float]:
        """A password and the time at which it ends."""
        password, ends = secrets.token_urlsafe(24), self.now() + _HOURS
        self.passwords[f"AWS:{password}"] = ends
        return password, ends

    def refusal(self, action: str) -> str:
        """What AWS says when the role lacks ``action``; empty when it has it."""
        self.used.add(action)
        if action not in self.denied and (self.granted is None or action in self.granted):
            return ""
        who = "arn:aws:sts::123456789012:assumed-role/ci/run"
        why = f"because no identity-based policy allows the ecr:{action} action"
        return f"User: {who} is not authorized to perform: ecr:{action} on resource: x {why}"

    def control(self, operation: str, body: bytes) -> tuple[int, bytes]:
        """One call to the control plane: status and JSON."""
        self.calls.append(operation)
        refusal = self.refusal(operation)
        if refusal:
            return _aws_error("AccessDeniedException", refusal)
        if self.throttled.get(operation):
            self.throttled[operation] -= 1
            return _aws_error("ThrottlingException", "Rate exceeded")
        if operation == "GetAuthorizationToken":
            password, ends = self.new_password()
            token = base64.b64encode(f"AWS:{password}".encode()).decode()
            data = {"authorizationToken": token, "expiresAt": ends, "proxyEndpoint": f"https://{HOST}"}
            return 200, json.dumps({"authorizationData": [data]}).encode()
        if operation == "DescribeImageScanFindings":
            return self._findings(json.loads(body))
        if operation == "StartImageScan":
            return 200, b"{}"
        return self.ask_moto(operation, body)

    def _findings(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        script = self.scans.setdefault(asked["imageId"]["imageDigest"], list(self.every))
        if not script:
            return _aws_error("ScanNotFoundException", "Image scan does not exist for the image")
        answer = script.pop(0) if len(script) > 1 else script[0]
        return 200, json.dumps(answer, default=datetime.timestamp).encode()

    def ask_moto(self, operation: str, body: bytes) -> tuple[int, bytes]:
        headers = {
            "X-Amz-Target": _TARGET + operation,
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": _SIGNED,
        }
        answer = httpx.post(f"http://{self.moto}/", content=body, headers=headers, trust_env=False)
        return answer.status_code, answer.content

    def repository(self, name: str) -> dict[str, Any] | None:
        """What moto has of a repository; it answers 500 for one that it does not have."""
        status, body = self.ask_moto("DescribeRepositories", json.dumps({"repositoryNames": [name]}).encode())
        found: dict[str, Any] = json.loads(body)["repositories"][0] if status == 200 else {}
        return found or None

    def images(self, name: str) -> set[str]:
        """The digests that the control plane knows."""
        status, body = self.ask_moto("DescribeImages", json.dumps({"repositoryName": name}).encode())
        return {one["imageDigest"] for one in json.loads(body)["imageDetails"]} if status == 200 else set()


def _aws_error(code: str, message: str) -> tuple[int, bytes]:
    return 400, json.dumps({"__type": code, "message": message}).encode()


class _EcrHandler(_Forwarder):
    owner: EcrFront

    def _forward(self) -> None:
        if self.path == "/":
            operation = self.headers.get("X-Amz-Target", "").removeprefix(_TARGET)
            status, body = self.owner.control(operation, self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(status, body, Content_Type="application/x-amz-json-1.1")
        elif self.path.startswith("/s3/"):
            self._object_store()
        elif self._allowed():
            self._registry()

    def _object_store(self) -> None:
        """Presigned addresses: one that comes with Authorization as well is refused, as S3 does."""
        if self.headers.get("Authorization"):
            self._refuse(400, "InvalidArgument", "Only one auth mechanism allowed")
            return
        self.path = "/v2/" + self.path.removeprefix("/s3/")
        super()._forward()

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        try:
            ends = self.owner.passwords.get(base64.b64decode(given.removeprefix("Basic ")).decode())
        except ValueError:
            ends = None
        if not given or ends is None:
            self._drain(int(self.headers.get("Content-Length") or 0))
            challenge = f'Basic realm="https://{HOST}/",service="ecr.amazonaws.com"'
            self.answer(401, error_body("UNAUTHORIZED", "Not Authorized"), WWW_Authenticate=challenge)
            return False
        if ends < self.owner.now():
            said = "Your authorization token has expired. Reauthenticate and try again."
            self._refuse(403, "DENIED", said)
            return False
        return True

    def _registry(self) -> None:
        match = re.fullmatch(r"/v2/(.+?)/(manifests|blobs|tags|referrers)/(.+)", urlsplit(self.path).path)
        if match is None:
            super()._forward()
            return
        name, kind, rest = match.groups()
        refusal = self.owner.refusal(self._action(kind, rest))
        if refusal:
            self._refuse(403, "DENIED", refusal)
            return
        repository = self.owner.repository(name)
        if repository is None:
            said = f"The repository with name '{name}' does not exist in the registry with id '{aws.ACCOUNT}'"
            self._refuse(404, "NAME_UNKNOWN", said)
        elif kind == "manifests" and self.command == "PUT":
            self._put_manifest(name, rest, repository)
        elif kind == "referrers":
            self._list_referrers(name, rest)
        elif kind == "blobs" and self.command == "GET" and rest.startswith("sha256:"):
            headers = dict(self.headers.items())
            self.owner.seen.append(Seen(method="GET", path=f"redirect {self.path}", headers=headers))
            host = self.headers.get("Host", "")
            self.answer(
                307,
                Location=f"http://{self.owner.address if ':' not in host else host}/s3/{name}/blobs/{rest}",
            )
        else:
            super()._forward()

    def _action(self, kind: str, rest: str) -> str:
        """Which of the API's actions stands behind a request."""
        if kind == "blobs" and rest.startswith("uploads"):
            return {"POST": "InitiateLayerUpload", "PUT": "CompleteLayerUpload"}.get(
                self.command, "UploadLayerPart"
            )
        if kind == "blobs":
            return "BatchCheckLayerAvailability" if self.command == "HEAD" else "GetDownloadUrlForLayer"
        if kind == "tags":
            return "ListImages"
        return "PutImage" if self.command == "PUT" else "BatchGetImage"

    def _list_referrers(self, name: str, subject: str) -> None:
        self.owner.take("GET", self.path, dict(self.headers.items()))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        found = {**index, "manifests": self.owner.attached.get((name, subject), [])}
        self.answer(200, json.dumps(found).encode(), Content_Type=OCI_INDEX)

    def _note_subject(self, name: str, body: bytes, media_type: str) -> None:
        manifest = json.loads(body)
        subject = manifest.get("subject", {}).get("digest")
        entry = {"mediaType": media_type, "digest": str(Digest.of(body)), "size": len(body)}
        entry["artifactType"] = manifest.get("artifactType", "")
        there = self.owner.attached.setdefault((name, subject), []) if subject else [entry]
        if entry not in there:
            there.append(entry)

    def _put_manifest(self, name: str, reference: str, repository: dict[str, Any]) -> None:
        fault = self.owner.take("PUT", self.path, dict(self.headers.items())) or Fault()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if fault.status:
            self.answer(
                fault.status, fault.body, **{k.replace("-", "_"): v for k, v in fault.headers.items()}
            )
            return
        with self.owner.putting:  # of two that put one immutable tag at once, one is refused
            self._take_manifest(name, reference, repository, body)

    def _take_manifest(self, name: str, reference: str, repository: dict[str, Any], body: bytes) -> None:
        known = self._head(name, reference)
        if ":" not in reference and known and repository["imageTagMutability"].startswith("IMMUTABLE"):
            said = f"The image tag '{reference}' already exists in '{name}' and cannot be overwritten"
            self._refuse(400, "TAG_INVALID", f"{said} because the tag is immutable.", drained=True)
            return
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        with contextlib.closing(upstream):
            media_type = self.headers["Content-Type"]
            upstream.request("PUT", self.path, body, {"Content-Type": media_type})
            response = upstream.getresponse()
            said_bytes = response.read()
            if response.status == 201:
                self._note_subject(name, body, media_type)
                self._report_to_moto(name, reference, body, media_type)
            digest = response.headers.get("Docker-Content-Digest", "")
            self.answer(response.status, said_bytes, Docker_Content_Digest=digest)

    def _report_to_moto(self, name: str, reference: str, body: bytes, media_type: str) -> None:
        image: dict[str, Any] = {"repositoryName": name, "imageManifest": body.decode()}
        image |= {"imageManifestMediaType": media_type, "imageDigest": str(Digest.of(body))}
        if ":" not in reference:
            image["imageTag"] = reference
        self.owner.ask_moto("PutImage", json.dumps(image).encode())

    def _head(self, name: str, reference: str) -> bool:
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        with contextlib.closing(upstream):
            accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
            accept += "application/vnd.docker.distribution.manifest.v2+json"
            upstream.request("HEAD", f"/v2/{name}/manifests/{reference}", headers={"Accept": accept})
            return upstream.getresponse().status == 200

    def _refuse(self, status: int, code: str, message: str, *, drained: bool = False) -> None:
        if not drained:
            self._drain(int(self.headers.get("Content-Length") or 0))
        self.answer(status, error_body(code, message), Content_Type="application/json")
