from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.convert import mksquashfs_program
from pipeline.convert.mksquashfs_program import (
    compression_options,
    memory_budget,
    pack_argv,
    parse_version,
    pseudo_definition,
    pseudo_link,
    refuse_unfit,
)
from pipeline.errors import FormatError, ToolError

MIB = 1 << 20


def argv(
    *, keep_owners: bool = False, keep_xattrs: bool = False, pseudo_file: Path | None = None
) -> list[str]:
    return pack_argv(
        Path("/usr/bin/mksquashfs"),
        Path("/scratch/root"),
        Path("/out/.x.sqsh"),
        zstd_level=3,
        block_size=131072,
        keep_owners=keep_owners,
        keep_xattrs=keep_xattrs,
        pseudo_file=pseudo_file,
        processors=2,
        memory=512 * MIB,
    )


def test_command_line_is_as_expected() -> None:
    assert " ".join(argv()) == (
        "/usr/bin/mksquashfs /scratch/root /out/.x.sqsh -comp zstd -Xcompression-level 3 -b 131072 -noappend "
        "-exit-on-error -mkfs-time 0 -no-recovery -no-xattrs -processors 2 -mem 512M -progress -all-root"
    )


@pytest.mark.parametrize("compressor", ["gzip", "lz4"])
def test_another_compressor_has_its_own_level(compressor: str) -> None:
    assert compression_options(compressor, zstd_level=3, block_size=4096) == [
        "-comp",
        compressor,
        "-b",
        "4096",
    ]


def test_file_times_are_never_set_all_at_once() -> None:
    assert "-all-time" not in argv(keep_owners=True, keep_xattrs=True)


def test_owners_and_attributes_are_kept_when_asked_for() -> None:
    kept = argv(keep_owners=True, keep_xattrs=True, pseudo_file=Path("/scratch/pseudo"))
    assert "-all-root" not in kept
    assert "-no-xattrs" not in kept
    assert kept[-2:] == ["-pf", "/scratch/pseudo"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("mksquashfs version 4.5.1 (2022/03/17)\ncopyright (C) 2022", (4, 5, 1)),
        ("mksquashfs version 4.4-git.1 (2021/09/14)", (4, 4, 0)),
        ("mksquashfs version 4.7.2 (2025/09/01)", (4, 7, 2)),
    ],
)
def test_versions_are_read(text: str, version: mksquashfs_program.Version) -> None:
    assert parse_version(text) == version


def test_a_program_without_a_version_is_refused() -> None:
    with pytest.raises(ToolError, match="does not report its version"):
        parse_version("Illegal option -version")


@pytest.mark.parametrize("version", [(4, 4, 0), (4, 5, 1), (4, 6, 1), (4, 7, 5), (5, 0, 0)])
def test_fit_versions_pass(version: mksquashfs_program.Version) -> None:
    refuse_unfit(version)


@pytest.mark.parametrize("version", [(4, 7, 0), (4, 7, 1), (4, 7, 4)])
def test_versions_that_damage_sparse_files_are_refused(version: mksquashfs_program.Version) -> None:
    with pytest.raises(ToolError, match="corrupt sparse files") as caught:
        refuse_unfit(version)
    assert "4.7.5" in caught.value.hint


def test_an_old_version_is_refused() -> None:
    with pytest.raises(ToolError, match=r"mksquashfs 4\.3\.0 is too old"):
        refuse_unfit((4, 3, 0))


def test_source_date_epoch_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert "SOURCE_DATE_EPOCH" not in mksquashfs_program.environment()


def test_pseudo_definitions_are_quoted() -> None:
    assert (
        pseudo_definition(b'a "b"\\c d', "B", 5, "644", 0, 0, 8, 1)
        == b'"/a \\"b\\"\\\\c d" B 5 644 0 0 8 1\n'
    )
    assert pseudo_link(b"new one", b'old"one') == b'"/new one" L "/old\\"one"\n'


def test_a_name_that_no_pseudo_definition_holds_is_refused() -> None:
    with pytest.raises(FormatError, match="newline") as caught:
        pseudo_definition(b"a\nb", "C", 0)
    assert "native" in caught.value.hint


def host(root: Path, *, available: int, cgroup: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:    {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, value in limits.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value)
    return root


def test_memory_is_a_quarter_of_what_is_there_within_bounds(tmp_path: Path) -> None:
    assert (
        memory_budget(root=host(tmp_path / "a", available=8192 * MIB, cgroup="0::/\n", limits={}))
        == 2048 * MIB
    )
    assert (
        memory_budget(root=host(tmp_path / "b", available=1 << 45, cgroup="0::/\n", limits={})) == 4096 * MIB
    )
    assert memory_budget(root=host(tmp_path / "c", available=MIB, cgroup="0::/\n", limits={})) == 256 * MIB
    assert memory_budget(root=tmp_path / "nothing") == 4096 * MIB


def test_memory_keeps_to_the_limit_of_a_job_also_when_a_parent_has_it(tmp_path: Path) -> None:
    limits = {
        "sys/fs/cgroup/slurm/job_1/memory.max": f"{2048 * MIB}\n",
        "sys/fs/cgroup/slurm/job_1/step_0/memory.max": "max\n",
    }
    root = host(tmp_path / "v2", available=1 << 40, cgroup="0::/slurm/job_1/step_0\n", limits=limits)
    assert memory_budget(root=root) == 512 * MIB
    root = host(
        tmp_path / "v1",
        available=1 << 40,
        cgroup="4:cpu,cpuacct:/\n7:memory:/slurm/job_1\n",
        limits={"sys/fs/cgroup/memory/slurm/job_1/memory.limit_in_bytes": f"{4096 * MIB}"},
    )
    assert memory_budget(root=root) == 1024 * MIB
