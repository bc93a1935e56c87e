"""The importer under the real pyxis and enroot: `srun --container-image=demo:v1.0`.

Neither is in a package registry: SQSHPIPE_TEST_PYXIS names spank_pyxis.so where it is in no usual place,
enroot is looked for in PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.install import ImporterSettings, install, plugstack_line
from pipeline.store.store import Store
from tests.support.slurm import Slurm, missing, private_slurm

USUAL = ("/usr/local/lib/slurm", "/usr/lib/slurm", "/usr/lib/x86_64-linux-gnu/slurm", "/opt/sqshpipe/lib")
TASKS = 8


def _spank() -> Path | None:
    named = os.environ.get("SQSHPIPE_TEST_PYXIS")
    places = [Path(named)] if named else [Path(folder) / "spank_pyxis.so" for folder in USUAL]
    return next((each for each in places if each.is_file()), None)


pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(_spank() is None, reason="pyxis is not installed, and no package registry has it"),
    pytest.mark.skipif(shutil.which("enroot") is None, reason="enroot is not installed"),
]


@pytest.fixture
def pyxis(published: Store) -> Iterator[Slurm]:
    """A private Slurm whose pyxis starts what our importer finds in the store."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-pyxis-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings = ImporterSettings(store=published.root, state=folder / "state", cluster="sqshtest")
        program = install(settings, folder / "prefix")
        for each in ("runtime", "enroot"):
            (folder / each).mkdir()
            (folder / each).chmod(0o1777)
        line = plugstack_line(
            program, str(_spank()), [f"runtime_path={folder}/runtime", "execute_entrypoint=0"]
        )
        with private_slurm(folder / "slurm", nodes=1, plugstack=line + "\n") as cluster:
            yield cluster


def environment(cluster: Slurm) -> dict[str, str]:
    base = cluster.folder.parent / "enroot"
    names = ("RUNTIME", "CACHE", "DATA", "TEMP")
    places = {f"ENROOT_{name}_PATH": str(base / name.lower()) for name in names}
    for each in places.values():
        Path(each).mkdir(exist_ok=True)
    return {**places, "NVIDIA_VISIBLE_DEVICES": "void"}


def test_ranks_start_from_the_published_file_and_leave_no_lease(pyxis: Slurm, published: Store) -> None:
    ask = "import json, os, time; time.sleep(1); "
    ask += "print(json.dumps([os.stat('/word').st_dev, open('/word').read()]))"
    argv = ["srun", "-N1", f"-n{TASKS}", "-t2", "--container-image=demo:v1.0", "python3", "-c", ask]
    done = pyxis.run(argv, timeout=120, env=environment(pyxis))
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(ranks) == TASKS
    assert {word for _, word in ranks} == {"one mount\n"}
    assert len({device for device, _ in ranks}) == 1
    deadline = time.monotonic() + 10
    while list((published.root / "leases").glob("job-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not list((published.root / "leases").glob("job-*"))


def test_a_lease_is_there_while_the_step_runs(pyxis: Slurm, published: Store) -> None:
    wrap = "srun -n1 --container-image=demo python3 -c 'import time; time.sleep(4)'"
    job = pyxis.run(["sbatch", "--parsable", "--wrap", wrap], env=environment(pyxis)).stdout.strip()
    deadline = time.monotonic() + 60
    leases: list[Path] = []
    while not leases and time.monotonic() < deadline:
        leases = list((published.root / "leases").glob("job-*"))
        time.sleep(0.1)
    assert [json.loads(each.read_text())["job"] for each in leases] == [job]
    assert json.loads(leases[0].read_text())["sha256"] == published.resolve("demo").sha256
    assert pyxis.wait_job(job, timeout=90) == "COMPLETED"
    assert not list((published.root / "leases").glob("job-*"))


def test_what_is_not_published_is_refused_with_the_nearest_names(pyxis: Slurm) -> None:
    argv = ["srun", "-n1", "-t2", "--container-image=demo:v1.1", "true"]
    done = pyxis.run(argv, timeout=120, env=environment(pyxis), check=False)
    assert done.returncode != 0
    assert "demo:v1.1 is not published" in done.stderr
    assert "demo:v1.0" in done.stderr
