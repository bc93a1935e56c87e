"""The smallest image that starts: a shell and what it loads, in enroot's form, changed as a test needs it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.oci.config import parse_config
from pipeline.oci.enroot_files import startup_files
from tests.support.images.layers import image_config

STATIC = """\
#include <stdio.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    char folder[4096];
    printf("%s%c", getcwd(folder, sizeof folder), 0);
    for (int i = 1; i < argc; i++) printf("%s%c", argv[i], 0);
    printf("--%c", 0);
    for (char **each = environ; *each; each++) printf("%s%c", *each, 0);
    return 0;
}
"""


def write(tree: Path, *, shell: bool = True, **config: Any) -> Path:
    """Make the folder `tree`: /bin/sh, the four files for the OCI config's settings, and empty folders."""
    for each in ("bin", "etc", "work", "dev", "proc", "sys", "tmp"):
        (tree / each).mkdir(parents=True, exist_ok=True)
    if shell:
        add_program(tree, Path(shutil.which("dash") or "/bin/sh"), "bin/sh")
    settings = {"WorkingDir": "/work", **config}
    for name, data in startup_files(parse_config(image_config([], settings))).items():
        (tree / name).write_bytes(data)
    return tree


def add_program(tree: Path, program: Path, name: str) -> None:
    """Put a program of this machine, and what it loads, into the image."""
    found = program.resolve()
    for source, place in [(found, name), *((path, str(path)[1:]) for path in _libraries(found))]:
        target = tree / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.resolve(), target)


def squash(tree: Path, *more: str) -> Path:
    """Make TREE.sqsh with mksquashfs."""
    made = tree.with_name(f"{tree.name}.sqsh")
    subprocess.run(
        ["mksquashfs", tree, made, "-noappend", "-all-root", "-comp", "lz4", "-quiet", "-no-progress", *more],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    made.chmod(0o644)
    return made


def image(folder: Path, change: Callable[[Path], object], *pseudo: str, **config: Any) -> Path:
    """A .sqsh whose files `change` has altered; `pseudo` are definitions of mksquashfs -p."""
    tree = write(folder / "tree", **config)
    change(tree)
    return squash(tree, *(word for each in pseudo for word in ("-p", each)))


def static_program(folder: Path) -> Path:
    """A program that loads nothing: it prints its folder, its words, "--", its variables, each with a NUL."""
    source, program = folder / "static.c", folder / "static"
    source.write_text(STATIC)
    subprocess.run(["gcc", "-static", "-O0", "-o", program, source], check=True, timeout=120)
    return program


def printed(output: bytes) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    """What the static program printed: its folder, its words, its variables."""
    folder, *rest = output.split(b"\0")[:-1]
    end = rest.index(b"--")
    pairs = [item.partition(b"=") for item in rest[end + 1 :]]
    return folder, rest[:end], {name: value for name, _, value in pairs}


@functools.cache
def _libraries(program: Path) -> tuple[Path, ...]:
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, timeout=30).stdout
    return tuple(Path(path) for path in re.findall(r"(/\S+) \(0x", listed))
