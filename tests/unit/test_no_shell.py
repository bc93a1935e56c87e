"""Nothing runs through a shell, and subprocesses have one door: the code is read for it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The importer is copied to nodes as one file of the standard library, so it cannot use the door.
DOORS = {"pipeline/system/process.py", "pipeline/node/pyxis_importer.py"}
SHELLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *(
        "asyncio.create_subprocess_shell",
        "eval",
        "exec",
        "compile",
        "pickle.loads",
        "pickle.load",
        "yaml.load",
    ),
    *("marshal.loads", "tempfile.mktemp", "shutil.unpack_archive"),
}
STARTS = {"subprocess", "pty", "popen2", "commands", "multiprocessing"}


def _trees() -> dict[str, ast.Module]:
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


TREES = _trees()


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_subprocesses_have_one_door() -> None:
    using = {path for path, tree in TREES.items() if _imported(tree) & STARTS}
    assert using == DOORS


def test_no_call_reaches_a_shell_or_runs_data() -> None:
    for path, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = _name(call.func)
            assert name not in SHELLS, f"{path}:{call.lineno} calls {name}"
            for keyword in call.keywords:
                shell = keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                )
                assert not shell, f"{path}:{call.lineno} asks for a shell"


def test_an_archive_is_never_extracted_by_the_standard_library() -> None:
    for path, tree in TREES.items():
        assert not _imported(tree) & {"zipfile", "shelve", "pickle", "marshal"}, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if _name(call.func) == "tarfile.open":  # a build context is written as a tar; none is read
                assert ast.literal_eval(call.args[1]) == "w", f"{path}:{call.lineno}"


def test_tls_is_never_switched_off() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"CERT_NONE", "_create_unverified_context"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in {"verify", "check_hostname"}:
                off = isinstance(node.value, ast.Constant) and node.value.value is False
                assert not off, f"{path}:{node.value.lineno} does not verify"
