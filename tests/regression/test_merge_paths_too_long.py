"""A working directory of 40,000 bytes took a minute and a gigabyte, and gave a file nobody could read."""

from __future__ import annotations

import pytest

from pipeline.errors import FormatError
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import enroot_rootfs
from tests.support.images.layers import image_config


def config(**settings: object) -> ImageConfig:
    return parse_config(image_config([], settings))


@pytest.mark.parametrize("path", ["/d" * 20_000, "/" + "d" * 256, "/" + "/".join(["d" * 200] * 21)])
def test_a_path_that_no_file_system_takes_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="longer than a file system takes"):
        enroot_rootfs(merge([]), config(WorkingDir=path))
    with pytest.raises(FormatError, match=r"volume .* longer than a file system takes"):
        enroot_rootfs(merge([]), config(Volumes={path: {}}))


def test_volumes_are_bounded_by_the_folders_that_they_need() -> None:
    volumes = {f"/{number}" + "/v" * 1000: {} for number in range(200)}
    with pytest.raises(FormatError, match="the volumes of the image"):
        enroot_rootfs(merge([]), config(Volumes=volumes))
    assert len(enroot_rootfs(merge([]), config(Volumes={f"/v{n}": {} for n in range(100)}))) > 100
