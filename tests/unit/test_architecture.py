"""The direction of imports, as docs/architecture.md draws it. A wrong arrow fails here, not in a review."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the top down: a part may import what stands in its own row or below.
LAYERS = [
    ["cli", "__main__"],
    ["metrics"],
    ["release", "batch", "batch_slurm", "schedule", "notify", "doctor", "report"],
    ["plan", "bases"],
    ["stages", "scan"],
    ["store", "cluster", "tools", "config", "lock", "inputs", "track", "scanning", "actions"],
    ["oci", "squashfs"],
    ["system"],
    ["progress", "errors", "words", "__init__"],
]
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}
FORMAT_CODE_MAY_NOT = {"socket", "subprocess", "httpx", "boto3", "docker", "time", "datetime", "requests"}


def _modules() -> list[Path]:
    return sorted((ROOT / "pipeline").rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
            if node.module == "pipeline":
                found |= {f"pipeline.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    part = _part(path)
    assert part in RANK, f"{part} has no row in LAYERS: give it one"
    for name in _imports(path):
        target = name.split(".")[1] if name.startswith("pipeline.") else ""
        if target in RANK:
            assert RANK[part] <= RANK[target], f"{path.relative_to(ROOT)} imports {name}, which is above it"


@pytest.mark.parametrize("package", ["oci", "squashfs"])
def test_format_code_knows_neither_the_other_format_nor_the_world(package: str) -> None:
    other = {"oci": "squashfs", "squashfs": "oci"}[package]
    for path in sorted((ROOT / "pipeline" / package).rglob("*.py")):
        if path.name == "cache.py":  # the folder of layer packs, whose trimming looks at their age
            continue
        names = _imports(path)
        assert not {name for name in names if name.startswith(f"pipeline.{other}")}, path
        assert not {name.split(".")[0] for name in names} & FORMAT_CODE_MAY_NOT, path


def test_modules_stay_small() -> None:
    # The importer is copied to nodes as one file that needs nothing but the standard library.
    one_file = {"pipeline/cluster/pyxis_importer.py"}
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long.keys() - one_file, "a module over 400 lines has a second noun in it"
