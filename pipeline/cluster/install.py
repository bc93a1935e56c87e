"""Puts the pyxis importer on a node: one program and its settings, owned by root, outside the store."""

from __future__ import annotations

import binascii
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pipeline.cluster import pyxis_importer
from pipeline.errors import ConfigError, ToolError
from pipeline.tools import process

log = structlog.get_logger()

PROGRAM = "pyxis-importer"
PYTHON = "/usr/bin/python3"
STATE_MODE = 0o1777  # every job's user leaves marks there, and removes only its own

_NEEDS = "the importer needs /usr/bin/python3, 3.8 or later"
# Without column numbers in tracebacks the code is half as large, and so is the time to read it.
MAKER_OPTIONS = ("-IS", "-X", "no_debug_ranges")
# Reads the source and prints the program, in base64. Python reads a script letter by letter and compiles all
# of it on every call, which takes longer than a look-up. So the first line is code for -c (old kernels cut it
# after 126 letters): it runs a loader of 400 bytes. Behind that lie the source, for people and for any
# other Python, and what this Python compiled of it: without docstrings and annotations, and without the
# __future__ import (which searches folders for 3 ms), but with its effect.
MAKER = r"""
import __future__, ast, binascii, marshal, sys
FIRST = '#!/usr/bin/python3 -IScimport marshal,sys;f=open(sys.argv[1],"rb");f.readline();exec(f.read(400))\n'
LOADER = '''# sqshpipe's importer for pyxis: its source, then what the Python that was here made of it
__file__ = sys.argv.pop(1)
if sys.modules["_frozen_importlib_external"].MAGIC_NUMBER == {magic}:
    f.seek({end})
    exec(marshal.loads(f.read()))
else:
    exec(compile(f.read({length}), __file__, "exec"))
'''
source = sys.stdin.buffer.read()
tree = ast.parse(source)
tree.body = [node for node in tree.body if getattr(node, "module", "") != "__future__"]
for node in ast.walk(tree):
    if isinstance(node, ast.arg):
        node.annotation = None
    elif isinstance(node, ast.FunctionDef):
        node.returns = None
flag = __future__.annotations.compiler_flag
code = compile(tree, "pyxis-importer", "exec", flags=flag, dont_inherit=True, optimize=2)
magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
end = len(FIRST) + 400 + len(source)
loader = LOADER.format(magic=magic, end=end, length=len(source)).ljust(399) + "\n"
program = (FIRST + loader).encode() + source + marshal.dumps(code)
print(binascii.b2a_base64(program, newline=False).decode())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImporterSettings:
    """What the importer does on this node; each field is documented in pyxis_importer.Settings."""

    store: Path
    registries: tuple[str, ...] = ()
    missing: str = "refuse"
    enroot: str = "enroot"
    state: Path = Path("/var/lib/sqshpipe")
    local: Path | None = None
    trusted_uids: tuple[int, ...] = (0,)
    verify: bool = False
    cluster: str = ""
    leases: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.store, self.state, self.local, self.leases):
            if path is not None and (not path.is_absolute() or not str(path).isprintable()):
                raise ConfigError(f"{str(path)!r} is not an absolute path on one line")
        if self.missing not in ("refuse", "import"):
            raise ConfigError(f"missing: {self.missing!r} is neither refuse nor import")

    def as_json(self) -> str:
        values = {
            "schema": pyxis_importer.SCHEMA,
            "store": str(self.store),
            "leases": str(self.leases or self.store / "leases"),
            "registries": list(self.registries),
            "missing": self.missing,
            "enroot": self.enroot,
            "state": str(self.state),
            "local": str(self.local or ""),
            "trusted_uids": list(self.trusted_uids),
            "verify": self.verify,
            "cluster": self.cluster,
        }
        return json.dumps(values, indent=2) + "\n"


def install(settings: ImporterSettings, prefix: Path) -> Path:
    """Write PREFIX/bin/pyxis-importer and pyxis-importer.json, make the state folder, and try a release.

    Can be repeated: files are swapped by rename, so that a step that starts meanwhile sees the old or the new
    one. Raises ConfigError for a prefix inside the store, ToolError when the program does not run.
    """
    prefix = prefix.absolute()
    if prefix.resolve().is_relative_to(settings.store.resolve()):
        raise ConfigError(
            f"the importer cannot be installed into the store ({prefix})",
            hint="it runs as every user: put it on each node's own disk, for example --prefix /opt/sqshpipe",
        )
    folder = prefix / "bin"
    program = folder / PROGRAM
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _swap(folder / f"{PROGRAM}.json", settings.as_json().encode(), 0o644)
        _swap(program, _program(importer_source()), 0o755)
        for each in (settings.state, settings.state / "verified", settings.state / "imported"):
            each.mkdir(parents=True, exist_ok=True)
            if each.stat().st_uid == os.geteuid():
                each.chmod(STATE_MODE)
    except OSError as error:
        raise ToolError(f"cannot install the importer: {error}", hint="run it as root on the node") from error
    if os.geteuid() != 0:
        log.warning("the importer is not owned by root: whoever owns it can change what every user runs")
    process.run([program, "release"], env={}, timeout=30, hint=_NEEDS)
    _look_at_leases(settings)
    return program


def _look_at_leases(settings: ImporterSettings) -> None:
    """Leases need a folder in which everyone may write; without them prune knows comments of jobs only."""
    if not settings.store.is_dir():
        log.warning("the store is not there yet", store=str(settings.store))
        return
    leases = settings.leases or settings.store / "leases"
    try:
        if not leases.is_dir():
            leases.mkdir()
            leases.chmod(STATE_MODE)
        missing = leases.stat().st_mode & STATE_MODE != STATE_MODE
    except OSError:
        missing = True
    if missing:
        log.warning("jobs cannot leave leases: make this folder with mode 1777", folder=str(leases))


def importer_source() -> str:
    """The importer as it is written."""
    return Path(pyxis_importer.__file__).read_text(encoding="utf-8")


def _program(source: str) -> bytes:
    """The importer as one file that this node's Python need not compile on every call."""
    made = process.run(
        [PYTHON, *MAKER_OPTIONS, "-c", MAKER], env={}, stdin=source.encode(), timeout=30, hint=_NEEDS
    )
    return binascii.a2b_base64(made.stdout)


def plugstack_line(program: Path, spank: str = "spank_pyxis.so", options: Sequence[str] = ()) -> str:
    """The line of plugstack.conf that makes pyxis use the importer and start straight from the file."""
    return " ".join(["required", spank, "use_squashfuse=1", f"importer={program}", *options])


def _swap(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(mode)
        if os.geteuid() == 0:
            shutil.chown(temporary, 0, 0)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
