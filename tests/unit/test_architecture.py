"""Which folder may import which. A wrong arrow fails here, not in a review.

docs/explanation/architecture.md shows the arrows.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipeline"

# From the bottom up, one rank each: a part imports parts of lower ranks only.
RANKS = (
    "__init__",
    "text",
    "errors",
    "progress",
    "system",
    "oci",
    "squashfs",
    "config",
    "authn",
    "store",
    "aws",
    "registry",
    "docker",
    "slurm",
    "github",
    "image",
    "scan",
    "convert",
    "attest",
    "bases",
    "plan",
    "notify",
    "batch",
    "release",
    "node",
    "cluster",
    "report",
    "doctor",
    "cli",
    "__main__",
)
RANK = {part: rank for rank, part in enumerate(RANKS)}
FORMAT_CODE_MAY_NOT = {"socket", "subprocess", "httpx", "boto3", "docker", "time", "datetime", "requests"}
TOP = {f"{name}.py" for name in ("errors", "progress", "text", "authn", "doctor", "__init__", "__main__")}
STARTS_ITSELF = "pipeline/system/self_command.py"
BEGIN, END = "<!-- imports: generated -->", "<!-- end -->"


def _modules() -> list[Path]:
    return sorted(path for path in PIPELINE.rglob("*.py") if path.stat().st_size)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def _part(module: str) -> str:
    return [*module.split("."), "__init__"][1]


MODULES = {_name(path): path for path in _modules()}


def _imports(path: Path) -> set[str]:
    """The modules of this package that `path` imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] == "pipeline"}


IMPORTS = {name: _imports(path) for name, path in MODULES.items()}
IDS = [str(path.relative_to(ROOT)) for path in MODULES.values()]


def test_the_top_of_the_package_holds_foundations_and_folders() -> None:
    assert {path.name for path in PIPELINE.glob("*.py")} <= TOP
    folders = {path.parent.relative_to(PIPELINE).parts[0] for path in _modules() if path.parent != PIPELINE}
    assert folders <= set(RANKS)


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_imports_point_to_lower_ranks(module: str) -> None:
    part = _part(module)
    assert part in RANK, f"{part} has no rank: give it one in RANKS"
    for name in IMPORTS[module]:
        target = _part(name)
        assert target == part or RANK[target] < RANK[part], (
            f"{module} imports {name}, which has a higher rank"
        )


def test_a_folder_imports_nothing_by_itself() -> None:
    """Whoever imports one module of it loads that module alone, also in two threads at once."""
    assert not {name for name, path in MODULES.items() if path.name == "__init__.py" and IMPORTS[name]}


def test_no_module_imports_itself_through_others() -> None:
    """Cycles inside a folder: between folders the ranks forbid them."""
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for name in sorted(IMPORTS.get(module, ())):
            if _part(name) == _part(module) and name != module:
                visit(name, (*way, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES.values(), ids=IDS)
def test_no_import_hides_in_a_string(path: Path) -> None:
    """Whoever starts this program as a process of its own asks the one module that knows how."""
    if str(path.relative_to(ROOT)) == STARTS_ITSELF:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"\b(?:from|import) pipeline\b", node.value), node.value
            loaded = re.fullmatch(r"pipeline(?:\.\w+)*", node.value)
            package = (
                node.value == f"pipeline.{_part(_name(path))}"
            )  # where jinja2 finds templates of its own
            assert loaded is None or package, f"{path}:{node.lineno} names {node.value}"


@pytest.mark.parametrize("package", ["oci", "squashfs"])
def test_format_code_knows_neither_the_other_format_nor_the_world(package: str) -> None:
    other = {"oci": "squashfs", "squashfs": "oci"}[package]
    for path in sorted((PIPELINE / package).rglob("*.py")):
        if path.name == "cache.py":  # the folder of layer packs, whose trimming looks at their age
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.startswith(f"pipeline.{other}")}, path
        assert not {name.split(".")[0] for name in names} & FORMAT_CODE_MAY_NOT, path


def test_modules_stay_small() -> None:
    # The importer is copied to nodes as one file that needs nothing but the standard library.
    one_file = {"pipeline/node/pyxis_importer.py"}
    long = {
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
    }
    assert not long - one_file, "a module over 400 lines has a second noun in it"


def diagram() -> str:
    """What each folder imports, highest rank first, as a table in Markdown."""
    arrows: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        arrows.setdefault(_part(module), set()).update(_part(name) for name in names)
    lines = ["| folder | imports |", "|---|---|"]
    for part in reversed(RANKS):
        if part in arrows and part not in ("__init__", "__main__"):
            targets = sorted(arrows[part] - {part, "__init__"}, key=lambda one: -RANK[one])
            lines.append(f"| `{part}` | {' '.join(f'`{one}`' for one in targets)} |")
    return "\n".join(lines)


def test_the_document_shows_the_imports_as_they_are() -> None:
    """`python -m tests.unit.test_architecture` writes the table anew."""
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == diagram()


if __name__ == "__main__":
    document = ROOT / "docs" / "explanation" / "architecture.md"
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{diagram()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def test_a_regression_test_is_named_after_a_module_and_what_was_seen() -> None:
    known = {path.stem for path in MODULES.values()} | set(RANKS)
    for path in (ROOT / "tests/regression").glob("test_*.py"):
        name = path.stem.removeprefix("test_")
        assert any(name.startswith(f"{module}_") for module in known), path.name
