"""docs/fault-matrix.md names exactly the cells that there are, and each cell a test that is there."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from tests.support.fault_matrix import CELLS, PAGE, ROOT, Cell, page


def _tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.stage}, {cell.fault}")
def test_each_cell_is_a_test(cell: Cell) -> None:
    file, _, name = cell.test.partition("::")
    assert re.sub(r"\[.*", "", name) in _tests(file)


def test_the_page_has_exactly_these_cells() -> None:
    def cells(text: str) -> Counter[tuple[str, ...]]:
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
        return Counter((*row[:3], row[4].partition(": ")[2]) for row in rows)

    assert cells(PAGE.read_text(encoding="utf-8")) == cells(page({}))
    assert len(CELLS) == len({(cell.stage, cell.fault) for cell in CELLS})


def test_every_cell_of_the_page_passed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "not shown" not in text
    assert text.count("| passed: ") == len(CELLS)
