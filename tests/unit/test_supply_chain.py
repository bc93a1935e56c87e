"""What sqshpipe itself is made of: every package that CI installs is locked by hash, used, alive in the lock,
under a licence that allows it; and nothing is fetched and run.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "tests" / "requirements.txt"
RUN_LOCK = ROOT / "requirements.txt"
PYTHONS = ("3.10", "3.11", "3.12")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))? \\$")
# Where the name of what is imported is another than the package's.
_MODULES = {
    "pyyaml": "yaml", "boto3-stubs": "", "types-docker": "", "types-pyyaml": "", "flask-cors": "", "mypy": "",
    "ruff": "",
    "pytest-timeout": "", "zizmor": "", "check-jsonschema": "", "build": "", "flask": "", "lz4": "",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry", "opentelemetry-sdk": "opentelemetry",
    "sqshpipe": "",
}  # fmt: skip
_LICENCES = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|MPL|Mozilla|Unlicense|0BSD|CC0|Zlib|HPND",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One version of the lock, for the Pythons that its marker names, with the hashes of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def _pins(lock: Path) -> list[Pin]:
    found: list[Pin] = []
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    blocks = re.split(r"\n(?=\S)", "\n".join(lines))
    for block in filter(None, blocks):
        head, *rest = block.splitlines()
        match = _PIN.fullmatch(head)
        assert match is not None, f"not a pinned package with hashes: {head!r}"
        hashes = [re.fullmatch(r" +--hash=(sha256:[0-9a-f]{64})(?: \\)?", line) for line in rest]
        assert all(hashes), f"not only sha256 hashes: {head}"
        found.append(
            Pin(
                name=canonicalize_name(match["name"]),
                version=match["version"],
                marker=match["marker"] or "",
                hashes=tuple(each[1] for each in hashes if each),
            )
        )
    return found


PINS = _pins(LOCK)
RUN_PINS = _pins(RUN_LOCK)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["otel"], *BUILD]]


def _environment(python: str) -> dict[str, str]:
    environment = {key: str(value) for key, value in default_environment().items()}
    return {**environment, "python_version": python, "python_full_version": f"{python}.99", "extra": ""}


def _locked(name: str, python: str, pins: list[Pin] = PINS) -> list[Pin]:
    here = _environment(python)
    return [pin for pin in pins if pin.name == name and (not pin.marker or Marker(pin.marker).evaluate(here))]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_pyproject_asks_for(python: str) -> None:
    for wanted in WANTED:
        name = canonicalize_name(wanted.name)
        if name == "sqshpipe" or (wanted.marker and not wanted.marker.evaluate(_environment(python))):
            continue
        pins = _locked(name, python)
        assert len(pins) == 1, f"{name} has {len(pins)} versions for Python {python}: lock again"
        assert wanted.specifier.contains(pins[0].version), (
            f"{name} {pins[0].version} is not {wanted.specifier}"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_has_one_version_a_python_and_a_hash(python: str) -> None:
    for pin in PINS:
        assert pin.hashes, pin.name
        assert len(_locked(pin.name, python)) <= 1, f"{pin.name} is locked twice for Python {python}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_people_install_is_locked_too_and_is_what_was_tested(python: str) -> None:
    """With all that its packages need in turn, as they say themselves; and nothing besides."""
    roots = [Requirement(text) for text in [*PROJECT["dependencies"], *BUILD, "editables"]]
    waiting = [(canonicalize_name(each.name), frozenset(each.extras)) for each in roots]
    needed: set[str] = set()
    here = {**_environment(python), "sys_platform": "linux", "platform_system": "Linux"}
    while waiting:
        name, extras = waiting.pop()
        needed.add(name)
        [pin] = _locked(name, python, RUN_PINS)
        [tested] = _locked(name, python)
        assert (pin.version, pin.hashes) == (tested.version, tested.hashes)
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another Python than this one
            asked = []
        for text in asked:
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({**here, "extra": extra}) for extra in {"", *extras}):
                below = (canonicalize_name(wanted.name), frozenset(wanted.extras))
                if below[0] not in needed or below[1]:
                    waiting.append(below)
    locked = {pin.name for pin in RUN_PINS if _locked(pin.name, python, RUN_PINS)}
    assert needed <= locked
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        elsewhere = {"colorama", "pywin32", "tomlkit"}  # Windows, and what newer builders ask for
        assert locked - needed <= elsewhere, f"locked, and needed by nothing: {locked - needed}"


@pytest.mark.parametrize("lock", [LOCK, RUN_LOCK], ids=["tests", "run"])
def test_the_lock_names_no_place_to_fetch_from(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(extra-)?index|--find-links|--trusted-host|-f |git\+", text)


def test_what_is_installed_here_is_what_the_lock_says() -> None:
    """In CI nothing may come from elsewhere; on a laptop versions may be others."""
    import os

    if not os.environ.get("CI"):
        pytest.skip("only in CI is the environment made from the lock")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for wanted in WANTED:
        for pin in _locked(canonicalize_name(wanted.name), python):
            if pin.name != "hatchling":
                assert importlib.metadata.version(pin.name) == pin.version


def _imported(*folders: str) -> set[str]:
    found = set()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            types_only = _for_types(tree)
            for node in ast.walk(tree):
                if node in types_only:
                    continue
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found


def _for_types(tree: ast.Module) -> set[ast.AST]:
    """What stands below `if TYPE_CHECKING:`, which never runs."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {below for block in blocks for statement in block.body for below in ast.walk(statement)}


def test_every_dependency_is_used() -> None:
    for texts, folders in (
        (PROJECT["dependencies"], ("pipeline",)),
        (EXTRAS["dev"], ("pipeline", "tests", "bench", "demo", "docs")),
    ):
        used = _imported(*folders)
        for text in texts:
            name = canonicalize_name(Requirement(text).name)
            module = _MODULES.get(name, name.replace("-", "_"))
            assert not module or module in used, f"nothing imports {name}: drop it"


def test_every_package_that_runs_is_declared() -> None:
    """Also those that another one brings along: it may leave them out in its next version."""
    declared = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["otel"], *EXTRAS["lz4"]]]
    known = {canonicalize_name(each.name).replace("-", "_") for each in declared} | {"yaml", "opentelemetry"}
    foreign = _imported("pipeline") - set(sys.stdlib_module_names) - known - {"pipeline"}
    assert foreign == set(), f"imported, and not in pyproject.toml: {foreign}"


def test_licences_allow_what_is_done() -> None:
    unknown = []
    for text in PROJECT["dependencies"]:
        metadata = importlib.metadata.metadata(Requirement(text).name)
        said = " ".join(
            [metadata.get("License-Expression") or "", (metadata.get("License") or "")[:200]]
            + [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
        )
        if not _LICENCES.search(said) or re.search(r"\bA?GPL\b", said):
            unknown.append(f"{text}: {said}")
    assert not unknown


def test_no_step_downloads_and_runs() -> None:
    files = [
        ROOT / "Makefile",
        ROOT / "bootstrap.sh",
        ROOT / ".ci" / "run",
        ROOT / "action.yml",
        *(ROOT / ".github").rglob("*.yml"),
    ]
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fetched = re.search(r"\b(curl|wget)\b", line) and re.search(
                r"\|\s*(sudo\s+)?(sh|bash|python3?)\b", line
            )
            assert not fetched, f"{path.name}:{number} runs what it downloads"
            action = re.search(r"uses: (\S+)", line)
            if action and not action[1].startswith("./"):
                assert re.search(r"@[0-9a-f]{40}$", action[1]), (
                    f"{path.name}:{number}: {action[1]} is not pinned"
                )
            if "pip install" in line and path.name != "bootstrap.sh":  # its own test is below
                assert "--require-hashes" in line, f"{path.name}:{number} installs without hashes"


def test_bootstrap_installs_from_the_locks_alone() -> None:
    text = (ROOT / "bootstrap.sh").read_text(encoding="utf-8")
    installs = [line.strip() for line in text.splitlines() if "pip install" in line or '"$@"' in line]
    assert [line.rpartition("-m ")[2] for line in installs] == [
        "pip install --quiet --disable-pip-version-check --no-compile --no-deps",
        '"$@" --require-hashes -r "$lock"',
        '"$@" --no-build-isolation -e .',
    ]
    assert re.findall(r"lock=(\S+)", text) == [
        "requirements.txt",
        "requirements.txt",
        "tests/requirements.txt",
    ]
    assert "hatchling" in (ROOT / "tests" / "requirements.in").read_text(encoding="utf-8")


def test_known_vulnerabilities() -> None:
    """pip-audit where it is installed and may ask; no test fails because a line is down."""
    import shutil
    import subprocess

    if shutil.which("pip-audit") is None:
        pytest.skip("pip-audit is not installed; it needs a network, which tests do without")
    done = subprocess.run(
        ["pip-audit", "--require-hashes", "-r", str(LOCK), "--progress-spinner=off"],
        capture_output=True,
        text=True,
    )
    if "onnection" in done.stderr or "resolve" in done.stderr:
        pytest.skip("the database of vulnerabilities cannot be asked from here")
    assert done.returncode == 0, done.stdout
