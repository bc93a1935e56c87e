"""Build and push with a real Docker Engine and a registry that asks for a password."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.config.types import ImageSpec, SecretSource
from pipeline.convert.sources import opened_source
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.errors import ConfigError, RegistryError, ToolError
from pipeline.image.build import BuiltImage, build, build_key
from pipeline.image.pin import BaseImage, pin
from pipeline.image.push import PushedImage, adopt, key_tag, push, tag_version
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials

pytestmark = pytest.mark.needs("dockerd", "docker", "docker-registry", "htpasswd", "root")

PLATFORM = Platform.parse("linux/amd64")
BUILDERS = ("buildkit", "classic")


class Lines:
    """A task that keeps what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.announced = self.done = 0

    def total(self, amount: int) -> None:
        self.announced += amount

    def advance(self, amount: int) -> None:
        self.done += amount

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def connected(engine: PrivateEngine) -> Iterator[Engine]:
    with Engine.connect(engine.host) as found:
        yield found


@pytest.fixture(scope="module")
def login(registry: PrivateRegistry) -> Callable[[str], Credentials | None]:
    mine = Credentials(username=registry.username, password=registry.password)
    return lambda host: mine if host == registry.address else None


@pytest.fixture
def client(registry: PrivateRegistry, login: Callable[[str], Credentials | None]) -> Iterator[RegistryClient]:
    with RegistryClient(registry.address, credentials=login) as found:
        yield found


@pytest.fixture
def pinned(base: Reference, client: RegistryClient) -> BaseImage:
    return pin(base, PLATFORM, None, lambda _host: client)


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test once with BuildKit and once as on a machine whose command lines do not offer it."""
    if request.param == "classic":
        monkeypatch.setattr(buildkit, "find_frontend", lambda _engine: None)
    return str(request.param)


@pytest.fixture
def spec(tmp_path: Path, base: Reference) -> ImageSpec:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f"ARG TAG=24.01-py3\nFROM {base.name}:${{TAG}}\nARG GREETING\nCOPY . /app\n"
        'RUN echo "$GREETING" > /app/greeting; echo said $GREETING; ls /app\n',
        encoding="utf-8",
    )
    (folder / "train.py").write_text("print('training')\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not for the image\n", encoding="utf-8")
    (folder / ".dockerignore").write_text("*.txt\n", encoding="utf-8")
    return ImageSpec(
        name="demo",
        base=base,
        platform=PLATFORM,
        dockerfile=folder / "Dockerfile",
        context=folder,
        build_args={"GREETING": f"hello-{tmp_path.name}"},
    )


@pytest.fixture
def repository(registry: PrivateRegistry, tmp_path: Path) -> Reference:
    return Reference.parse(f"{registry.address}/team/{tmp_path.name.replace('_', '-').strip('-').lower()}")


@pytest.fixture
def make(
    connected: Engine, pinned: BaseImage, login: Callable[[str], Credentials | None]
) -> Callable[..., BuiltImage]:
    def made(spec: ImageSpec, task: Lines | None = None, *, fresh: bool = False) -> BuiltImage:
        return build(
            spec,
            pinned,
            key=build_key(spec, pinned),
            version="v1.0",
            revision="0123abc",
            engine=connected,
            fresh=fresh,
            credentials=login,
            task=task or Lines(),
        )

    return made


def edit(spec: ImageSpec, text: str) -> ImageSpec:
    """The same image with more at the end of its Dockerfile."""
    assert spec.dockerfile is not None
    with spec.dockerfile.open("a", encoding="utf-8") as file:
        file.write(text)
    return spec


def test_builds_on_the_locked_digest_and_says_so_in_labels(
    spec: ImageSpec, make: Callable[..., BuiltImage], pinned: BaseImage, connected: Engine, builder: str
) -> None:
    reported = Lines()
    before = spec.dockerfile.read_bytes() if spec.dockerfile else b""
    built = make(spec, reported)
    assert spec.dockerfile is not None
    assert spec.dockerfile.read_bytes() == before
    image = connected.image(built.local_id)
    assert image is not None
    if not connected.containerd_store:
        assert built.local_id == str(built.config_digest)
    prefix = "org.opencontainers.image"
    assert image.labels[f"{prefix}.title"] == "demo"
    assert image.labels[f"{prefix}.version"] == "v1.0"
    assert image.labels[f"{prefix}.revision"] == "0123abc"
    assert image.labels[f"{prefix}.created"].endswith("Z")
    assert image.labels[f"{prefix}.base.name"] == str(spec.base)
    assert image.labels[f"{prefix}.base.digest"] == str(pinned.digest)
    text = "\n".join(reported.lines)
    assert str(pinned.digest) in text, "FROM stands by digest"
    assert f"said {spec.build_args['GREETING']}" in text, "a step's output streams"
    assert "train.py" in text
    assert "notes.txt" not in text
    assert "sqshpipe.Dockerfile" not in text.split("said")[-1], "the pinned Dockerfile is not copied"


def test_a_failing_step_is_reported_with_its_last_lines(
    spec: ImageSpec, make: Callable[..., BuiltImage], builder: str, connected: Engine
) -> None:
    edit(spec, "RUN echo before it; echo no such wheel >&2; exit 7\n")
    with pytest.raises(ToolError) as caught:
        make(spec)
    assert caught.value.exit_code == 3
    assert "no such wheel" in caught.value.message
    assert "7" in caught.value.message.splitlines()[0]
    client = docker.APIClient(base_url=connected.host)
    assert client.containers(all=True) == []
    client.close()


def test_a_base_that_is_gone_is_one_failure(
    spec: ImageSpec, pinned: BaseImage, make: Callable[..., BuiltImage], builder: str
) -> None:
    assert spec.dockerfile is not None
    missing = f"{spec.base.registry}/nobody/nothing:1"
    spec.dockerfile.write_text(spec.dockerfile.read_text() + f"\nCOPY --from={missing} /x /x\n")
    with pytest.raises(ToolError, match="nothing"):
        make(spec)


def test_multi_stage_and_target(
    spec: ImageSpec, make: Callable[..., BuiltImage], connected: Engine, builder: str
) -> None:
    assert spec.dockerfile is not None
    spec.dockerfile.write_text(
        f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}} AS tools\nRUN echo made > /made\nENV WHICH=tools\n"
        f"FROM {spec.base} AS last\nCOPY --from=tools /made /made\nRUN exit 9\n"
    )
    built = make(dataclasses.replace(spec, target="tools", build_args={}))
    assert connected.image(built.local_id) is not None
    with pytest.raises(ToolError):
        make(dataclasses.replace(spec, build_args={}))


@pytest.mark.parametrize("kind", ["env", "file"])
def test_secrets_reach_the_step_and_stay_nowhere(
    spec: ImageSpec,
    make: Callable[..., BuiltImage],
    connected: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    value = "hf_s3cr3t-value"
    monkeypatch.setenv("HUB_SECRET", value)
    (tmp_path / "with,comma").write_text(value, encoding="utf-8")
    source = SecretSource(env="HUB_SECRET") if kind == "env" else SecretSource(file=tmp_path / "with,comma")
    edit(
        spec,
        "RUN --mount=type=secret,id=hub python3 -c "
        "\"print('read', len(open('/run/secrets/hub').read()), 'characters')\"\n",
    )
    reported = Lines()
    built = make(dataclasses.replace(spec, secrets={"hub": source}), reported)
    assert any(f"read {len(value)} characters" in line for line in reported.lines)
    client = docker.APIClient(base_url=connected.host)
    seen = f"{client.history(built.local_id)}{client.inspect_image(built.local_id)}{reported.lines}"
    client.close()
    assert value not in seen


def test_secrets_without_buildkit_or_without_a_value_are_refused_before_the_build(
    spec: ImageSpec, make: Callable[..., BuiltImage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HUB_SECRET", raising=False)
    with pytest.raises(ConfigError, match="HUB_SECRET is not set"):
        make(dataclasses.replace(spec, secrets={"hub": SecretSource(env="HUB_SECRET")}))
    with pytest.raises(ConfigError, match="is not a readable file"):
        make(dataclasses.replace(spec, secrets={"hub": SecretSource(file=tmp_path / "none")}))
    monkeypatch.setenv("HUB_SECRET", "x")
    monkeypatch.setattr(buildkit, "find_frontend", lambda _engine: None)
    with pytest.raises(ConfigError, match="only BuildKit") as caught:
        make(dataclasses.replace(spec, secrets={"hub": SecretSource(env="HUB_SECRET")}))
    assert "buildx" in caught.value.hint


def test_a_missing_dockerfile_is_named(
    spec: ImageSpec, make: Callable[..., BuiltImage], pinned: BaseImage
) -> None:
    assert spec.dockerfile is not None
    gone = dataclasses.replace(spec, dockerfile=spec.dockerfile.with_name("None"))
    with pytest.raises(ConfigError, match="None"):
        make(gone)


def test_pushed_under_its_key_adopted_and_tagged(
    spec: ImageSpec,
    make: Callable[..., BuiltImage],
    connected: Engine,
    client: RegistryClient,
    repository: Reference,
    pinned: BaseImage,
    login: Callable[[str], Credentials | None],
) -> None:
    key = build_key(spec, pinned)
    assert adopt(repository, key, pinned, client) is None
    built = make(spec)
    task = Lines()
    pushed = push(built, repository, connected, client, credentials=login, task=task)
    assert not pushed.adopted
    assert pushed.config_digest == built.config_digest
    assert pushed.size > 1 << 20
    assert 0 < task.done <= task.announced
    assert client.tags(repository.repository) == [key_tag(key)]
    again = push(built, repository, connected, client, credentials=login)
    assert again == pushed
    assert adopt(repository, key, pinned, client) == dataclasses.replace(pushed, adopted=True)

    for _ in range(2):
        tag_version(pushed, "v1.0", client)
    found = client.head(repository.repository, "v1.0")
    assert found is not None
    assert found.digest == pushed.digest
    other = push(
        make(edit(spec, "RUN echo other > /other\n")), repository, connected, client, credentials=login
    )
    with pytest.raises(RegistryError, match=r"v1\.0 is another image already"):
        tag_version(other, "v1.0", client)


def test_a_run_that_was_killed_after_its_push_is_resumed(
    spec: ImageSpec,
    pinned: BaseImage,
    connected: Engine,
    client: RegistryClient,
    repository: Reference,
    registry: PrivateRegistry,
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from pipeline.config.types import ImageSpec
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.image.build import build, build_key
from pipeline.image.pin import pin
from pipeline.convert.sources import opened_source
from pipeline.image.push import push
from pipeline.registry.credentials import credentials_for
from pipeline.docker.engine import Engine
from pipeline.registry.client import RegistryClient
dockerfile, base, repository, greeting = sys.argv[1:]
file = Path(dockerfile)
spec = ImageSpec(name="demo", base=Reference.parse(base), platform=Platform.parse("linux/amd64"),
                 dockerfile=file, context=file.parent, build_args={"GREETING": greeting})
client = RegistryClient(spec.base.registry)
pinned = pin(spec.base, spec.platform, None, lambda _: client)
engine = Engine.connect()
built = build(spec, pinned, key=build_key(spec, pinned), version="v1.0", revision=None, engine=engine)
pushed = push(built, Reference.parse(repository), engine, client)
print(pushed.digest, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    greeting = spec.build_args["GREETING"]
    run = subprocess.run(
        [sys.executable, "-c", program, str(spec.dockerfile), str(spec.base), str(repository), greeting],
        env={**os.environ, **registry.variables, "DOCKER_HOST": connected.host},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    found = adopt(repository, build_key(spec, pinned), pinned, client)
    assert found is not None
    assert found.adopted
    assert str(found.digest) == run.stdout.split()[-1]


def test_a_wrong_password_is_one_sentence(
    spec: ImageSpec,
    make: Callable[..., BuiltImage],
    connected: Engine,
    client: RegistryClient,
    repository: Reference,
) -> None:
    built = make(spec)
    began = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        push(
            built,
            repository,
            connected,
            client,
            credentials=lambda _: Credentials(username="u", password="bad"),
        )
    assert time.monotonic() - began < 10, "not tried again"
    assert str(repository.registry) in caught.value.message
    assert "docker login" in caught.value.hint
    assert "bad" not in str(caught.value).split()


def test_an_unreachable_registry_is_one_sentence(
    spec: ImageSpec, make: Callable[..., BuiltImage], connected: Engine, client: RegistryClient
) -> None:
    built = make(spec)
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1"):
        push(built, Reference.parse("127.0.0.1:1/demo"), connected, client, credentials=lambda _: None)
    assert time.monotonic() - began < 10


def test_what_another_pushed_under_the_key_meanwhile_is_noticed(
    spec: ImageSpec,
    make: Callable[..., BuiltImage],
    connected: Engine,
    client: RegistryClient,
    repository: Reference,
    login: Callable[[str], Credentials | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = make(spec)
    pushed: PushedImage = push(built, repository, connected, client, credentials=login)
    monkeypatch.setattr(Engine, "push", lambda *_: built.base.digest)
    with pytest.raises(RegistryError, match=str(pushed.digest)):
        push(built, repository, connected, client, credentials=login)


def test_a_build_from_scratch_takes_no_step_from_the_cache(
    spec: ImageSpec, make: Callable[..., BuiltImage], connected: Engine, builder: str
) -> None:
    edit(spec, "RUN cat /proc/sys/kernel/random/uuid > /uuid\n")
    first = connected.image(make(spec).local_id)
    cached = connected.image(make(spec).local_id)
    fresh = connected.image(make(spec, fresh=True).local_id)
    assert first is not None
    assert cached is not None
    assert fresh is not None
    assert first.diff_ids == cached.diff_ids
    assert first.diff_ids != fresh.diff_ids


def test_what_the_engine_saves_is_the_image_that_was_built(
    spec: ImageSpec,
    make: Callable[..., BuiltImage],
    connected: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = make(spec)
    image = connected.image(built.local_id)
    assert image is not None
    monkeypatch.setenv("DOCKER_HOST", connected.host)
    with opened_source(f"docker-daemon:{built.local_id}", PLATFORM, scratch=tmp_path) as source:
        assert source.config().diff_ids == image.diff_ids
        with source.open_layer(len(image.diff_ids) - 1) as layer:
            assert layer.read()
    assert list(tmp_path.iterdir()) == [spec.context]

    target = tmp_path / "image.tar"
    connected.save(built.local_id, target)
    assert target.stat().st_size > 1 << 20
    with pytest.raises(ToolError, match="no-such-image"):
        connected.save("no-such-image", target)
