"""A folder becomes a release of data: imported, named, mounted, seen by a command and by a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.node import pyxis_importer
from pipeline.store.store import Store
from tests import conftest
from tests.support.servers.slurm import Slurm, digests_in_use

FILES = 300


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "wikitext2"
    (folder / "train").mkdir(parents=True)
    for number in range(FILES):
        (folder / "train" / f"{number:04}.txt").write_text(f"text {number}\n")
    (folder / "large").write_bytes(os.urandom(300_000))
    (folder / "large").chmod(0o600)
    return folder


@pytest.fixture
def data(published: Store, dataset: Path) -> Iterator[Store]:
    """A store with the image demo:v1.0 and the data wikitext2:v1."""
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        conftest.missing("mounting needs root or /dev/fuse")
    path = sqshpipe("store", "import", dataset, "--as", "wikitext2:v1").strip()
    assert path == str(published.root / "wikitext2" / "v1.sqsh")
    yield published
    assert str(published.root) not in Path("/proc/self/mounts").read_text()


def sqshpipe(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(["sqshpipe", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def same(folder: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", folder, other], check=False, timeout=60).returncode == 0


def test_data_has_versions_channels_and_leases_as_images_have(data: Store, dataset: Path) -> None:
    first = data.resolve("wikitext2")
    assert (first.version, first.kind) == ("v1", "data")
    (dataset / "more").write_text("more")
    sqshpipe("store", "import", dataset, "--as", "wikitext2:v2")
    assert data.resolve("wikitext2:latest").version == "v2"
    sqshpipe("promote", "wikitext2:v1", "stable")
    sqshpipe("store", "lease", "create", "wikitext2:v1")
    assert "wikitext2:v1" in sqshpipe("store", "lease", "list")
    assert "kind        data" in sqshpipe("show", "wikitext2:v1")
    assert sqshpipe("store", "scrub").startswith("3 files read, 0 damaged")
    assert sqshpipe("diff", "wikitext2:v1", "wikitext2:v2")
    assert data.resolve("wikitext2:v1", "linux/arm64").sha256 == first.sha256  # whatever the node is
    dropped = sqshpipe("squashfs", "ls", "wikitext2:v1")
    assert "large" in dropped


def test_the_same_again_is_done_and_other_content_is_refused(data: Store, dataset: Path) -> None:
    sqshpipe("store", "import", dataset, "--as", "wikitext2:v1")
    (dataset / "more").write_text("more")
    assert "other content" in sqshpipe("store", "import", dataset, "--as", "wikitext2:v1", code=8)


def test_one_name_is_an_image_or_data(data: Store, dataset: Path, image: Path) -> None:
    refused = sqshpipe("store", "import", image, "--as", "wikitext2:v2", code=8)
    assert "wikitext2 is the name of data, and wikitext2:v2 is an image" in refused
    assert "demo is the name of an image" in sqshpipe("store", "import", dataset, "--as", "demo:v2", code=8)


def test_a_file_of_squashfs_can_be_data_too(data: Store, dataset: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.sqsh"
    subprocess.run(["mksquashfs", dataset, made, "-quiet", "-no-progress"], check=True, timeout=60)
    sqshpipe("store", "import", made, "--as", "elsewhere:v1", "--data")
    assert data.resolve("elsewhere:latest").kind == "data"


def test_the_refusals_say_what_to_do(data: Store, dataset: Path, tmp_path: Path) -> None:
    assert "give --as NAME:VERSION" in sqshpipe("store", "import", dataset, code=2)
    assert "leave out --move" in sqshpipe("store", "import", dataset, "--as", "x:v1", "--move", code=2)
    (tmp_path / "text.tar.gz").write_text("no tar")
    assert "text.tar.gz" in sqshpipe("store", "import", tmp_path / "text.tar.gz", "--as", "x:v1", code=6)
    for words in (
        ["run", "wikitext2", "--", "true"],
        ["node", "check", "wikitext2"],
        ["job", "script", "wikitext2", "--", "true"],
    ):
        assert "wikitext2:v1 is data, not an image" in sqshpipe(*words, code=2)
    for wrong in ("wikitext2", "wikitext2=data", "=/data", "wikitext2=/a,b"):
        assert "is not NAME[:VERSION]=/INSIDE" in sqshpipe(
            "run", "demo", "--data", wrong, "--", "true", code=2
        )


def test_the_importer_refuses_data_in_one_sentence(data: Store, tmp_path: Path) -> None:
    settings = pyxis_importer.Settings(
        {"schema": 1, "store": str(data.root), "state": str(tmp_path / "state")}
    )
    sentence = "wikitext2:v1 is data, not an image"
    for reference in ("wikitext2", "wikitext2:v1", f"wikitext2@sha256:{data.resolve('wikitext2').sha256}"):
        with pytest.raises(pyxis_importer.Refused, match=sentence):
            pyxis_importer.get(settings, f"docker://{reference}")
    (data.root / "wikitext2" / "index.json").unlink()
    with pytest.raises(pyxis_importer.Refused, match=sentence):
        pyxis_importer.get(settings, "wikitext2")


def test_a_node_of_another_kind_hears_the_same(
    data: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pyxis_importer.Settings(
        {"schema": 1, "store": str(data.root), "state": str(tmp_path / "state")}
    )
    monkeypatch.setattr(pyxis_importer, "platform", lambda: "linux/arm64")
    with pytest.raises(pyxis_importer.Refused, match="wikitext2:v1 is data, not an image"):
        pyxis_importer.get(settings, "wikitext2:v1")


def test_it_is_mounted_on_the_node(data: Store, dataset: Path) -> None:
    words = ["wikitext2", "--holder-pid", str(os.getpid())]
    folder = Path(sqshpipe("node", "mount", *words).strip())
    assert same(folder, dataset)
    sqshpipe("node", "unmount", *words)
    assert not list(folder.parent.parent.glob("*/root/*"))


@pytest.mark.parametrize("by", ["kernel", "fuse"])
def test_a_command_sees_it_in_the_folder_that_is_named(data: Store, by: str) -> None:
    if by == "kernel" and os.geteuid() != 0:
        pytest.skip("only root can")
    ask = (
        "import os; print(len(os.listdir('/data/train')), open('/data/train/0007.txt').read().strip(), "
        "os.stat('/data').st_dev == os.stat('/word').st_dev, os.access('/data', os.W_OK))"
    )
    words = ["run", "demo", "--with", by, "--data", "wikitext2:v1=/data", "--", "python3", "-c", ask]
    assert sqshpipe(*words) == f"{FILES} text 7 False False\n"


def test_the_tasks_of_a_job_see_it_and_prune_knows(data: Store, slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "job.out"
    ask = (
        "import json, os, time; time.sleep(2); print(json.dumps([len(os.listdir('/data/train')), "
        "os.stat('/data').st_dev, os.environ['SLURMD_NODENAME']]))"
    )
    words = ["job", "script", "demo", "--data", "wikitext2=/data", "--runtime", "run", "-N", "2"]
    job = sqshpipe(*words, f"--sbatch=--output={out}", "--submit", "--", "python3", "-c", ask).strip()
    digests = {data.resolve(name).sha256 for name in ("demo", "wikitext2")}
    assert digests <= digests_in_use()
    assert slurm.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
    seen = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("[")]
    assert {count for count, _, _ in seen} == {FILES}
    assert len(seen) == 16
    for node in ("n1", "n2"):
        assert len({device for _, device, name in seen if name == node}) == 1


def test_without_the_prolog_the_job_says_what_is_missing(data: Store, slurm: Slurm, tmp_path: Path) -> None:
    """The check comes before pyxis, which this Slurm does not have."""
    out = tmp_path / "job.out"
    words = ["job", "script", "demo", "--data", "wikitext2=/data", f"--sbatch=--output={out}"]
    job = sqshpipe(*words, "--submit", "--", "true").strip()
    assert slurm.wait_job(job, timeout=120) == "FAILED"
    sentence = "wikitext2:v1 is not mounted on every node: install the Prolog of sqshpipe node hooks"
    assert sentence in out.read_text()


def test_the_script_gives_the_mount_of_the_prolog_to_pyxis(data: Store) -> None:
    text = sqshpipe("job", "script", "demo", "--data", "wikitext2:v1=/data", "--", "true")
    digest = data.resolve("wikitext2").sha256
    assert f'data1="/run/sqshpipe/{digest}/users/$(id -u).$(id -g)/root"\n' in text
    assert '--container-mounts="$data1:/data:ro" ' in text
    assert f",sqshpipe:{digest}\n" in text
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=text, text=True, check=True, timeout=60)
