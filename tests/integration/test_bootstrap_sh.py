"""bootstrap.sh on other distributions: what it installs as root, and whom it lets pass.

The package manager is a stand-in, and the programs that it looks for are there as the test says.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each package has, and which packages a distribution knows.
PROGRAMS = {
    "docker.io": ["dockerd"],
    "docker-cli": ["docker"],
    "docker-registry": ["docker-registry"],
    "apache2-utils": ["htpasswd"],
    "squashfuse": ["squashfuse"],
    "fuse3": ["fusermount3"],
    "git": ["git"],
    "python3": ["python3"],
    "python3-venv": [],
    "apparmor": ["apparmor_parser"],
}
OWN = ("sh", "dirname", "grep", "cat", "find", "rm", "chmod", "touch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of its own: only what lies in `programs` is on its PATH."""

    folder: Path
    programs: Path

    def bootstrap(self, purpose: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", self.folder / "bootstrap.sh", purpose, "python3"],
            env={"PATH": str(self.programs), "HOME": str(self.folder), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def asked(self) -> list[str]:
        """What the package manager was asked, without its options."""
        log = self.folder / "asked"
        return log.read_text().splitlines() if log.exists() else []


def _machine(folder: Path, *, root: bool, client_apart: bool) -> Machine:
    """Debian 13 (`client_apart`: docker-cli is a package) or Debian 12 and Ubuntu (docker.io has it)."""
    programs = folder / "bin"
    programs.mkdir()
    machine = Machine(folder=folder, programs=programs)
    for name in OWN:
        (programs / name).symlink_to(shutil.which(name) or "/missing")
    text = (ROOT / "bootstrap.sh").read_text()
    for real, ours in (("/usr/sbin/policy-rc.d", f"{folder}/policy"), (":/usr/sbin:/sbin", "")):
        assert real in text
        text = text.replace(real, ours)
    # The socket of an engine of the machine that runs this test is not that machine's.
    (folder / "bootstrap.sh").write_text(text.replace("/var/run/docker.sock", f"{folder}/docker.sock"))
    made = {package: list(names) for package, names in PROGRAMS.items()}
    if not client_apart:
        made["docker.io"] += made.pop("docker-cli")
    cases = "".join(
        f"{package}) for name in {' '.join(names)}; do\n"
        f": >{programs}/$name; chmod 755 {programs}/$name; done;;\n"
        for package, names in made.items()
    )
    known = "|".join(made)
    scripts = {
        "id": f"echo {0 if root else 1000}",
        "apt-cache": f'for last; do :; done\ncase $last in {known}) echo "Package: $last";; esac',
        "apt-get": f'for word; do case $word in -*|*=*|install|update) ;; *) echo "$word" >>{folder}/asked\n'
        f'case $word in\n{cases}*) echo "no package $word" >&2; exit 100;;\nesac;; esac; done',
        "python3": "exit 0",
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    # The Python packages are installed already.
    for name in ("pyproject.toml", "requirements.txt"):
        (folder / name).touch()
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(programs / "python3", folder / ".venv" / "bin" / "python")
    (folder / ".venv" / ".installed").touch()
    return machine


@pytest.mark.parametrize("client_apart", [True, False], ids=["Debian 13", "Debian 12, Ubuntu"])
def test_root_gets_the_packages_once(tmp_path: Path, *, client_apart: bool) -> None:
    machine = _machine(tmp_path, root=True, client_apart=client_apart)
    done = machine.bootstrap("demo")
    assert done.returncode == 0, done.stderr
    assert ("docker-cli" in machine.asked) == client_apart
    assert {"docker.io", "docker-registry", "apache2-utils", "squashfuse", "fuse3", "git"} <= set(
        machine.asked
    )
    before = machine.asked
    again = machine.bootstrap("demo")
    assert (again.returncode, again.stderr) == (0, "")
    assert machine.asked == before, "nothing is installed a second time"
    assert not (tmp_path / "policy").exists()


def test_a_bare_machine_gets_python_too(tmp_path: Path) -> None:
    machine = _machine(tmp_path, root=True, client_apart=True)
    (machine.programs / "python3").unlink()
    (tmp_path / ".venv" / "bin" / "python").unlink()
    done = machine.bootstrap("run")
    assert {"python3", "python3-venv", "git"} <= set(machine.asked), done.stderr


def test_an_old_python_is_reported_before_anything_is_installed(tmp_path: Path) -> None:
    machine = _machine(tmp_path, root=True, client_apart=True)
    (machine.programs / "python3").write_text("#!/bin/sh\nexit 1\n")
    done = machine.bootstrap("demo")
    assert (done.returncode, machine.asked) == (3, [])
    assert "older than 3.10" in done.stderr


@pytest.mark.parametrize("client_apart", [True, False], ids=["Debian 13", "Debian 12, Ubuntu"])
def test_an_ordinary_user_with_an_engine_passes(tmp_path: Path, *, client_apart: bool) -> None:
    machine = _machine(tmp_path, root=False, client_apart=client_apart)
    (machine.programs / "git").symlink_to("/bin/true")
    done = machine.bootstrap("demo", DOCKER_HOST="unix:///run/user/1000/docker.sock")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.asked == []


def test_an_ordinary_user_without_one_learns_what_is_missing(tmp_path: Path) -> None:
    machine = _machine(tmp_path, root=False, client_apart=True)
    done = machine.bootstrap("demo")
    assert done.returncode == 3
    assert "sudo apt-get install git docker.io docker-cli" in done.stderr
    assert machine.asked == []
    (machine.programs / "apt-get").unlink()
    assert "apt-get" not in machine.bootstrap("demo").stderr, "Fedora and macOS do not have it"


def test_another_docker_context_is_an_engine(tmp_path: Path) -> None:
    machine = _machine(tmp_path, root=False, client_apart=False)
    (machine.programs / "git").symlink_to("/bin/true")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"currentContext": "desktop-linux"}')
    assert machine.bootstrap("demo").returncode == 0
    (tmp_path / ".docker" / "config.json").unlink()
    assert machine.bootstrap("demo", DOCKER_CONTEXT="desktop-linux").returncode == 0
