"""The files of a build context: those that the real BuildKit is sent, and what is hashed is what is built."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.config.types import ImageSpec
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.errors import ConfigError
from pipeline.image.build import build, build_key
from pipeline.image.context import members
from pipeline.image.dockerignore import Ignore
from pipeline.image.inputs import gather
from pipeline.image.pin import BaseImage, pin
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials

pytestmark = pytest.mark.needs("dockerd", "docker", "docker-registry", "htpasswd", "root")

PLATFORM = Platform.parse("linux/amd64")
FIRST_OF_TODAY = (
    23  # the first Docker whose BuildKit has moby/patternmatcher; before it there was another one
)
TREE = [
    "a/b/c.py",
    "a/b/d.txt",
    "a/e.py",
    "Data/x",
    "data/train.yaml",
    "README.md",
    "docs/README.md",
    "docs/api/x.md",
    "src/main.py",
    "src/lib/util.py",
    "src/lib/deep/er/f.c",
    "run.log",
    "logs/run.log",
    "foo",
    "foobar",
    "xfoo",
    "bar/foo/baz",
    "bar/foobar",
    "a.b",
    "axb",
    "tmp/x/",
    "empty/",
    "b{2}",
    "bb",
    "x|y",
    "q",
    "#hash",
    "é.txt",
    "[x]",
    "x",
    "node_modules/m/index.js",
    "src/node_modules/n/i.js",
    ".git/config",
    ".env",
    "src/.env",
    "$v",
    "(p)",
    "p",
    "+",
    "a^b",
    "z]",
    "-",
    "back\\slash",
    "sp ace",
    "new\nline",
]
LIST = (
    "import os; "
    "[print('./' + os.path.relpath(os.path.join(d, f), '/app')) for d, _, fs in os.walk('/app') for f in fs]"
)
PATTERNS = [
    "Data",
    "data",
    "*\n!src",
    "*\n!src/lib",
    "*\n!src/lib/util.py",
    "**/*.py",
    "**/*.py\n!a/e.py",
    "a\n!a/b",
    "a\n!a/b\na/b/c.py",
    "a/*\n!a/b",
    "a/**\n!a/b/c.py",
    "a/b/**",
    "a/**/c.py",
    "a/**/**/c.py",
    "**/foo",
    "foo**",
    "foo",
    "/foo",
    "./foo",
    "foo/",
    "/",
    ".",
    "..",
    "../foo",
    "bar/../foo",
    "**/README.md\n!docs/README.md",
    "*.md",
    "*/*.md",
    "*/*/*.md",
    "**/*.md\n!README.md",
    "?oo",
    "*/temp*",
    "logs/*\n!logs/run.log",
    "[a-b]*",
    "[^a]*",
    "[!a]*",
    "a.b",
    "a.b*",
    "*.b",
    "b{2}*",
    "x|y*",
    "*foo|zzz",
    "\\#hash",
    "#hash",
    " #hash",
    "\\[x\\]",
    "[x]",
    "$v",
    "$v*",
    "a^*",
    "**/node_modules",
    "node_modules\n!**/node_modules/n",
    "**/.*",
    ".git\n.env\n!.git/config",
    "sp ace",
    "  foo  ",
    "! foo\nfoo\n! foo",
    "é*",
    "?.txt",
    "\\d",
    "new*",
    "new?line",
    "empty",
    "*\n!empty",
    "src/lib/deep\n!src/lib/deep/er/f.c",
    "src\n!src/lib\nsrc/lib/deep\n!src/lib/deep/er",
    "**/lib\n!src/**",
    "**/lib/**",
    "src/**/er",
    "src/**/*.c",
    "*/lib",
    "src/*/deep",
    "***",
    "**/**",
    "*/**",
    "a/\n!a/b/",
    "Readme.md",
    "*.PY",
    "[[:alpha:]]",
    "[\\]x]",
    "z[\\]]",
    "-",
    "[\\-]",
    "*\n!.dockerignore\n!Dockerfile",
    "*\n!*/",
    "back\\\\slash",
    "back*slash",
    "foo\n\nbar/foo",
]
PATTERNS_OF_TODAY = [
    "*\n!**/*.py",
    "**\n!src/main.py",
    "!a\na",
    "a/b\n!a",
    "**foo",
    "b{2}",
    "x|y",
    "(p)",
    "(p)*",
    "+*",
    "a^b",
    "**/node_modules/**\n!src/node_modules",
    "**line",
    "tmp/x\n!tmp/x/nothing",
    "**/",
    "*\n!a/*/c.py",
    "*\n!**/",
    "a/b/c.py\n!**/b",
    "**/b/*.py\n!a",
]


def make_tree(folder: Path) -> Path:
    for name in TREE:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
    return folder


def sent_by_buildkit(engine: Engine, context: Path, dockerfile: Path) -> list[str]:
    frontend = buildkit.find_frontend(engine)
    assert frontend is not None
    done = subprocess.run(
        [*frontend.argv, "-q", "-f", str(dockerfile), "--output", "type=tar,dest=-", str(context)],
        env={**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        check=True,
        timeout=120,
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return sorted(name for member in tar if (name := member.name.strip("/.") and member.name.rstrip("/")))


@pytest.fixture(scope="module")
def connected(engine: PrivateEngine) -> Iterator[Engine]:
    with Engine.connect(engine.host) as found:
        yield found


def test_the_same_files_as_the_real_buildkit(connected: Engine, tmp_path: Path) -> None:
    context = make_tree(tmp_path / "context")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    today = int(connected.version.split(".")[0]) >= FIRST_OF_TODAY
    differences = {}
    for text in PATTERNS + (PATTERNS_OF_TODAY if today else []):
        (tmp_path / "Dockerfile.dockerignore").write_text(text)
        ours = {path for path, _ in members(context, Ignore.of(dockerfile, context))}
        if different := ours ^ set(sent_by_buildkit(connected, context, dockerfile)):
            differences[text] = different
    assert differences == {}


@pytest.fixture
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    mine = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _host: mine) as found:
        yield found


@pytest.fixture
def pinned(base: Reference, client: RegistryClient) -> BaseImage:
    return pin(base, PLATFORM, None, lambda _host: client)


@pytest.fixture
def spec(tmp_path: Path, base: Reference) -> ImageSpec:
    context = make_tree(tmp_path / "context")
    (context / "Dockerfile").write_text(
        f'FROM {base}\nCOPY . /app\nRUN python3 -c "{LIST}" && cat /app/a/e.py\n'
    )
    return ImageSpec(
        name="demo", base=base, platform=PLATFORM, dockerfile=context / "Dockerfile", context=context
    )


class Lines:
    """A meter that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def total(self, amount: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(params=["buildkit", "classic"])
def builder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "classic":
        monkeypatch.setattr(buildkit, "find_frontend", lambda _engine: None)
    return str(request.param)


def built(
    spec: ImageSpec, base: BaseImage, engine: Engine, registry: PrivateRegistry, key: str | None = None
) -> str:
    lines = Lines()
    mine = Credentials(username=registry.username, password=registry.password)
    build(
        spec,
        base,
        key=key or build_key(spec, base),
        version="v1",
        revision=None,
        engine=engine,
        credentials=lambda host: mine if host == registry.address else None,
        task=lines,
    )
    return "\n".join(lines.lines)


def files_in(said: str) -> set[str]:
    return {line.split("./", 1)[1] for line in said.splitlines() if " ./" in line or line.startswith("./")}


@pytest.mark.parametrize("text", ["Data", "*\n!**/*.py", "**/node_modules\n.dockerignore\nDockerfile"])
def test_what_is_hashed_is_what_the_builder_gets(
    spec: ImageSpec,
    pinned: BaseImage,
    connected: Engine,
    registry: PrivateRegistry,
    builder: str,
    text: str,
) -> None:
    assert spec.context is not None
    (spec.context / "new\nline").unlink()
    (spec.context / ".dockerignore").write_text(text)
    os.mkfifo(spec.context / "a" / "pipe")
    hashed = gather(spec, pinned.digest).context
    wanted = {path for path, fingerprint in hashed.items() if fingerprint.startswith(("x:", "-:"))}
    if hashed.get("Dockerfile") != "!":
        wanted.add("Dockerfile")
    if builder == "classic":
        wanted.discard(".dockerignore")
    assert files_in(built(spec, pinned, connected, registry)) == wanted


def test_an_edit_that_keeps_size_and_time_is_built(
    spec: ImageSpec, pinned: BaseImage, connected: Engine, registry: PrivateRegistry, builder: str
) -> None:
    assert spec.context is not None
    edited = spec.context / "a" / "e.py"
    for content in ("print('first')\n", "print('other')\n"):
        edited.write_text(content)
        os.utime(edited, (1_000_000, 1_000_000))
        assert content.strip() in built(spec, pinned, connected, registry)


def test_a_file_that_changed_since_the_plan_ends_the_build(
    spec: ImageSpec, pinned: BaseImage, connected: Engine, registry: PrivateRegistry
) -> None:
    assert spec.context is not None
    key = build_key(spec, pinned)
    (spec.context / "a" / "e.py").write_text("another")
    with pytest.raises(ConfigError, match="changed after the build was planned"):
        built(spec, pinned, connected, registry, key)
    assert spec.dockerfile is not None
    key = build_key(spec, pinned)
    spec.dockerfile.write_text(spec.dockerfile.read_text() + "# more\n")
    with pytest.raises(ConfigError, match="changed after the build was planned"):
        built(spec, pinned, connected, registry, key)
