"""`ulimit -v` ended in "unexpected MemoryError", or in a thread that could not be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.oci.entry import Limits
from pipeline.stages import convert as stage
from pipeline.system.memory import out_of_memory
from tests.support.images import image
from tests.support.layers import LayerBuilder


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("can't start new thread")]
)
def test_each_way_in_which_memory_ends_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_name: str) -> object:
        raise error

    monkeypatch.setattr(stage, "_converter", short)
    source = image(tmp_path / "image", [LayerBuilder().file("a", b"1")])
    with pytest.raises(ToolError, match="memory that this process may use is used up") as caught:
        stage.convert(
            source,
            stage.ConvertOptions(),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
            limits=Limits(),
        )
    assert "ulimit -v" in caught.value.hint


@pytest.mark.parametrize("error", [ValueError(), OSError(28, "full"), RuntimeError("another")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert out_of_memory(error) is None
