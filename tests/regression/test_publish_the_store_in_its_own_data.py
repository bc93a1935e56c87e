"""A folder of data that has the store in it: /fsx, where the store is /fsx/containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.names import check_version
from pipeline.errors import ConfigError
from pipeline.release.publish import publish_data
from tests.support.store.releases import new_store


@pytest.mark.parametrize("where", ["fsx", "fsx/containers", "fsx/containers/blobs", "link"])
def test_a_folder_around_or_in_the_store_is_refused(where: str, tmp_path: Path) -> None:
    store = new_store(tmp_path / "fsx" / "containers")
    (tmp_path / "link").symlink_to(tmp_path / "fsx")
    with pytest.raises(ConfigError, match="lie in each other"):
        publish_data(tmp_path / where, store=store, image="all", version=check_version("v1"))
    assert store.images() == []
    assert not list(store.layout.blobs.glob("*"))


def test_a_folder_beside_the_store_is_data(tmp_path: Path) -> None:
    store = new_store(tmp_path / "fsx" / "containers")
    data = tmp_path / "fsx" / "words"
    data.mkdir()
    (data / "a").write_text("word\n")
    made = publish_data(data, store=store, image="words", version=check_version("v1"))
    assert store.resolve("words:v1").sha256 == made.sha256
