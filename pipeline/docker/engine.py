"""The Docker Engine, through its HTTP API.

The engine answers ``200 OK`` before it begins a build or a push, and reports a failure as one more event of
the stream; docker-py passes such events on like any other. So each stream is read here to its end, and an
error in it is raised.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, final

import docker
import requests
import tenacity
import urllib3
from docker.errors import DockerException

from pipeline.docker.context import Endpoint, chosen_endpoint
from pipeline.docker.errors import NONSENSE, NotThere, reason, translate_errors
from pipeline.docker.events import (
    LAST_LINES,
    STEP,
    Passing,
    Transfer,
    build_failure,
    lines,
    push_failure,
    pushed_digest,
)
from pipeline.errors import RegistryError, ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.progress import NO_TASK, Task
from pipeline.registry.credentials import Credentials
from pipeline.system.disk import cannot_write
from pipeline.system.log import log

_CONNECT_TIMEOUT = 10  # seconds
_ANSWER_TIMEOUT = 120  # seconds: a question that no work hangs on; an engine under load takes its time
_SILENCE_TIMEOUT = 1800  # seconds: the engine says nothing while it compresses or commits a large layer
_SAVE_PIECE = 1 << 20  # bytes
_PUSH_ATTEMPTS = 5
_BUILDKIT_API = (1, 39)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalImage:
    """An image that the engine holds. `local_id` is its own word for it, not always the config's digest."""

    local_id: str
    config_digest: Digest | None
    platform: Platform
    labels: Mapping[str, str]
    diff_ids: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One build; the same for BuildKit and for the classic builder.

    `secrets` maps an id to ``env=NAME`` or ``src=FILE``, as BuildKit's ``--secret`` takes them; never to a
    value. None for `platform` or `network` means the default of the engine.
    """

    tag: str  # the local name that the image gets
    context: Path  # all of it is sent
    path: Path  # of the Dockerfile on disk
    dockerfile: str  # the text to build, in which the base is pinned
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    platform: str | None = None
    network: str | None = None
    registries: tuple[str, ...] = ()  # hosts of the images that it builds on
    no_cache: bool = False
    zstd_over: frozenset[Digest] | None = None  # the base's layers, where all others are to be zstd


@final
class Engine:
    """A connection to a Docker Engine; a context manager.

    Raises ToolError where the engine fails or cannot be reached, RegistryError where a registry refuses the
    engine.
    """

    def __init__(
        self, client: docker.APIClient, host: str, variables: Mapping[str, str] | None = None
    ) -> None:
        self._client = client
        self._info: dict[str, Any] | None = None
        self.host = host
        # What the docker command needs in its environment to reach the same engine.
        self.variables = {**(variables or {}), "DOCKER_HOST": host}

    @classmethod
    def connect(cls, host: str | None = None) -> Engine:
        """Connect to `host`, else to the engine that the user chose (`chosen_endpoint`).

        Raises ToolError when no engine answers within 10 s, ConfigError for an invalid docker context.
        """
        endpoint = Endpoint(host=host) if host is not None else chosen_endpoint()
        host, tls = endpoint.host, endpoint.tls or False
        if endpoint.tls and not endpoint.tls.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the user's context says so
        hint = "start Docker, or set DOCKER_HOST to an engine that runs; sqshpipe doctor says more"
        if host.startswith("ssh://"):
            far = host.removeprefix("ssh://")
            hint = f"forward its socket, ssh -nNT -L /tmp/far.sock:/var/run/docker.sock {far}"
            hint += ", and set DOCKER_HOST=unix:///tmp/far.sock"
        try:
            _check_socket(host)
            client = _Client(base_url=host, version="auto", timeout=_CONNECT_TIMEOUT, tls=tls)
        except PermissionError as error:
            raise ToolError(
                f"no permission for the Docker Engine at {host}", hint="join the group docker, or be root"
            ) from error
        except (DockerException, requests.RequestException, OSError, *NONSENSE) as error:
            raise ToolError(f"no Docker Engine answers at {host}: {reason(error)}", hint=hint) from error
        client.timeout = _SILENCE_TIMEOUT
        return cls(client, host, endpoint.variables)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    # What it is

    def info(self) -> Mapping[str, Any]:
        """The engine's own description of itself (``docker info``), asked for once."""
        if self._info is None:
            with self._asking("asking the Docker Engine about itself"):
                self._info = dict(self._client.info())
        return self._info

    @property
    def version(self) -> str:
        return str(self.info().get("ServerVersion", "unknown"))

    @property
    def platform(self) -> Platform:
        info = self.info()
        with translate_errors("reading what the Docker Engine says of itself"):
            return Platform.parse(f"{info['OSType']}/{info['Architecture']}")

    @property
    def root(self) -> str:
        """The folder, on the engine's machine, of its images and of what it builds; nothing is asked."""
        return str((self._info or {}).get("DockerRootDir", "/var/lib/docker"))

    @property
    def containerd_store(self) -> bool:
        """True where an image's Id is the digest of its manifest, not of its config (Docker 29's default)."""
        return any(
            "containerd.snapshotter" in str(value)
            for row in self.info().get("DriverStatus") or ()
            for value in row
        )

    @property
    def has_buildkit(self) -> bool:
        """True where the engine itself can build with BuildKit: Linux engines since 18.09 (API 1.39)."""
        api = tuple(int(part) for part in str(self._client.api_version).split("."))
        return self.platform.os == "linux" and api >= _BUILDKIT_API

    def answers(self) -> bool:
        """Whether the engine is still there."""
        try:
            _check_socket(self.host)
            with self._asking("looking for the Docker Engine"):
                return bool(self._client.ping())
        except (ToolError, OSError):
            return False

    def default_network(self) -> str | None:
        """The network that a build's RUN steps have to use: ``host`` on an engine without a bridge."""
        with self._asking("listing the Docker Engine's networks"):
            names = {network["Name"] for network in self._client.networks()}
        return None if "bridge" in names else "host"

    # Its images

    def image(self, name: str) -> LocalImage | None:
        """The local image of that name or Id; None when it does not exist."""
        containerd = self.containerd_store
        try:
            with self._asking(f"looking for the local image {name}"):
                found: dict[str, Any] = self._client.inspect_image(name)  # type: ignore[no-untyped-call]
                return LocalImage(
                    local_id=found["Id"],
                    config_digest=None if containerd else Digest.parse(found["Id"]),
                    platform=Platform.parse(f"{found['Os']}/{found['Architecture']}"),
                    labels=dict((found.get("Config") or {}).get("Labels") or {}),
                    diff_ids=tuple(Digest.parse(text) for text in found["RootFS"].get("Layers") or ()),
                )
        except NotThere:
            return None

    def tag(self, local_id: str, reference: Reference) -> None:
        """Give a local image the name that it is pushed under."""
        with self._asking(f"tagging {local_id} as {reference}"):
            self._client.tag(local_id, reference.name, tag=reference.tag)

    def untag(self, reference: Reference) -> None:
        """Take a name away; the image goes with its last name. A name that is not there is fine."""
        with contextlib.suppress(NotThere), translate_errors(f"removing the tag {reference}"):
            self._client.remove_image(str(reference), noprune=False)

    def save(self, name: str, dest: Path, task: Task = NO_TASK) -> None:
        """Write a local image to `dest` as a docker-archive; about 160 MB/s.

        Raises ToolError when the engine has no such image; `dest` may then hold a part.
        """
        try:
            with translate_errors(f"saving the local image {name}"), dest.open("wb") as file:
                size = self._client.inspect_image(name).get("Size")  # type: ignore[no-untyped-call]
                task.total(int(size or 0))
                pieces = self._client.get_image(name, chunk_size=_SAVE_PIECE)
                with contextlib.closing(pieces):
                    for piece in pieces:
                        file.write(piece)
                        task.advance(len(piece))
        except OSError as error:
            raise cannot_write(error, dest) from error

    # Its work

    def build(
        self,
        context: IO[bytes],
        dockerfile: str,
        order: BuildRequest,
        *,
        docker_config: Path | None = None,
        task: Task = NO_TASK,
    ) -> None:
        """Build with the engine's classic builder, which leaves the image under its tag.

        `context` is a tar that holds the Dockerfile under the name `dockerfile`. `docker_config` is a
        folder whose config.json has the credentials for the bases. Raises ToolError with the last lines of
        a failing step.
        """
        if docker_config is not None:
            self._client.reload_config(str(docker_config / "config.json"))
        step: deque[str] = deque(maxlen=LAST_LINES)
        with translate_errors(f"building {order.path}"):
            events = self._client.build(
                fileobj=context,
                custom_context=True,
                tag=order.tag,
                dockerfile=dockerfile,
                buildargs=dict(order.build_args),
                labels=dict(order.labels),
                target=order.target,
                platform=order.platform,
                network_mode=order.network,
                nocache=order.no_cache,
                rm=True,
                forcerm=True,  # else a failing RUN leaves its container behind
                use_config_proxy=False,
                decode=True,
            )
            failure = None
            for event in events:
                failure = failure or event.get("error")
                for line in lines(event):
                    if STEP.match(line):
                        step.clear()
                    step.append(line)
                    task.line(line)
        if failure:
            raise build_failure(order.path, str(failure), step, root=self.root)

    def push(self, reference: Reference, credentials: Credentials | None, task: Task = NO_TASK) -> Digest:
        """Push a local image under its own name and return the manifest's digest, as the engine reports it.

        Tried again, up to 5 times, on what passes by itself: rate limits, 5xx, cut connections, timeouts.
        Raises RegistryError when the registry refuses or cannot be reached.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Passing),
            stop=tenacity.stop_after_attempt(_PUSH_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=1, max=30),
            before_sleep=lambda state: log.warning("push failed, trying again", attempt=state.attempt_number),
            reraise=True,
        )
        return retrying(self._push_once, reference, credentials, task)

    def _push_once(self, reference: Reference, credentials: Credentials | None, task: Task) -> Digest:
        transfer = Transfer(task)
        failure: str | None = None
        digest: str | None = None
        with translate_errors(f"pushing {reference}"):
            events = self._client.push(
                reference.name, tag=reference.tag, auth_config=_auth(credentials), stream=True, decode=True
            )
            for event in events:
                failure = failure or event.get("error")
                digest = pushed_digest(event) or digest
                transfer.take(event)
        if failure:
            raise push_failure(str(failure), reference, root=self.root)
        if digest is None:
            raise RegistryError(f"the Docker Engine pushed {reference} and did not report its digest")
        return Digest.parse(digest)

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        """`translate_errors`, for a question: an engine that hangs gets less time than one at work."""
        self._client.timeout = _ANSWER_TIMEOUT
        try:
            with translate_errors(doing):
                yield
        finally:
            self._client.timeout = _SILENCE_TIMEOUT


def _auth(credentials: Credentials | None) -> dict[str, str]:
    if credentials is None:
        return {}  # not None, at which docker-py would look for others itself
    if credentials.identity_token:
        return {"identitytoken": credentials.identity_token}
    return {"username": credentials.username, "password": credentials.password}


class _Client(docker.APIClient):
    """A client that trusts the CA of the engine's certificates, also where REQUESTS_CA_BUNDLE is set."""

    def merge_environment_settings(self, *args: Any) -> Any:
        url, proxies, stream, verify, cert = args
        return super().merge_environment_settings(
            url, proxies, stream, self.verify if verify is None else verify, cert
        )


def _check_socket(host: str) -> None:
    """Raise OSError where nobody listens; docker-py would leave the socket of a refused connection open."""
    if host.startswith("unix://"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(_CONNECT_TIMEOUT)
            probe.connect(host.removeprefix("unix://"))
