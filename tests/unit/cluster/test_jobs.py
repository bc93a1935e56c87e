"""What stands in a job script, and what never does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.cluster.jobs import JobSpec, Launcher, Resolved, Runtime, script
from pipeline.cluster.settings import Jobs
from pipeline.errors import ConfigError

IMAGE = Resolved(image="demo", version="v1.0", sha256="ab" * 32, path=Path("/fsx/containers/blobs/x.sqsh"))


def text(launcher: Launcher = "pytorch", runtime: Runtime = "pyxis", **more: object) -> str:
    command = ("python", "train.py", "--words", "two words; $(touch /tmp/x)")
    values: dict[str, object] = {"name": "train", "image": IMAGE, "command": command, "nodes": 2}
    return script(JobSpec(**{**values, "launcher": launcher, "runtime": runtime, **more}))  # type: ignore[arg-type]


def srun_line(rendered: str) -> str:
    return rendered[rendered.index("\nsrun") :].replace("\\\n", " ")


@pytest.mark.parametrize("launcher", ["pytorch", "torchrun", "mpi", "mpirun"])
@pytest.mark.parametrize("runtime", ["pyxis", "path", "run"])
def test_every_script_is_good_shell_and_names_its_digest(launcher: Launcher, runtime: Runtime) -> None:
    hosts = ("a", "b") if launcher == "mpirun" else ()
    rendered = text(launcher, runtime, hosts=hosts)
    subprocess.run(["bash", "-n"], input=rendered, text=True, check=True)
    assert f"sqshpipe:{IMAGE.sha256}" in rendered
    assert "'two words; $(touch /tmp/x)'" in rendered
    options = [line for line in rendered.splitlines() if line.startswith("#SBATCH")]
    assert not any("container" in each for each in options), "pyxis would run the script itself in the image"


@pytest.mark.needs("shellcheck")
@pytest.mark.parametrize("launcher", ["pytorch", "torchrun", "mpi", "mpirun"])
@pytest.mark.parametrize("runtime", ["pyxis", "path", "run"])
def test_every_script_passes_shellcheck(launcher: Launcher, runtime: Runtime) -> None:
    jobs = Jobs(mounts=("/fsx/data",), env={}, partition="gpu", time="1:00:00", cpus_per_task=4)
    hosts = ("a", "b") if launcher == "mpirun" else ()
    for rendered in (text(launcher, runtime, hosts=hosts), text(launcher, runtime, hosts=hosts, jobs=jobs)):
        done = subprocess.run(["shellcheck", "-"], input=rendered, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


def test_pytorch_has_a_rank_for_each_gpu_and_no_mpi() -> None:
    rendered = text("pytorch", jobs=Jobs(gpus_per_node=4))
    assert "#SBATCH --ntasks-per-node=4\n" in rendered
    assert "#SBATCH --gpus-per-node=4\n" in rendered
    assert "MASTER_ADDR=$(scontrol show hostnames" in rendered
    assert "--mpi" not in rendered
    assert "--container-image=demo:v1.0 " in srun_line(rendered)


def test_torchrun_is_one_task_a_node() -> None:
    rendered = text("torchrun", jobs=Jobs(gpus_per_node=8))
    assert "#SBATCH --ntasks-per-node=1\n" in rendered
    line = srun_line(rendered)
    assert "--ntasks-per-node=1" in line
    assert "--nproc-per-node=8" in line
    assert "torchrun" in line
    assert " python train.py" not in line, "torchrun takes the script, not an interpreter"


def test_mpi_uses_pmix_and_mpirun_needs_no_slurm() -> None:
    assert "--mpi=pmix" in srun_line(text("mpi"))
    rendered = text("mpirun", hosts=("n1", "n2"), jobs=Jobs(gpus_per_node=2))
    assert "SLURM" not in rendered
    assert "#SBATCH" not in rendered
    assert "n1 slots=2\nn2 slots=2\n" in rendered
    assert f"sqshpipe run --env=NCCL_DEBUG {IMAGE.path} -- python" in rendered.replace("\\\n", "")


def test_mounts_and_environment_come_from_the_settings() -> None:
    jobs = Jobs(mounts=("/fsx/data", "/scratch:/tmp/s:rw"), env={"NCCL_DEBUG": "INFO", "FI_PROVIDER": "efa"})
    line = srun_line(text(jobs=jobs))
    assert "--container-mounts=/fsx/data:/fsx/data:ro,/scratch:/tmp/s:rw" in line
    assert "--container-env=FI_PROVIDER,NCCL_DEBUG" in line
    assert "export NCCL_DEBUG=INFO\n" in text(jobs=jobs)
    writable = jobs.model_copy(update={"writable": True})
    assert "--container-mounts=/fsx/data:/fsx/data,/scratch:/tmp/s:rw" in srun_line(text(jobs=writable))
    own = srun_line(text(runtime="run", jobs=writable))
    assert "--mount=/fsx/data:/fsx/data:rw --mount=/scratch:/tmp/s:rw" in own


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": ()},
        {"nodes": 0},
        {"name": "two words"},
        {"name": "x\n#SBATCH --uid=0"},
        {"launcher": "mpirun", "hosts": ("one",)},
        {"extra": ("qos",)},
        {"extra": ("--qos=x\nrm -rf /",)},
    ],
)
def test_what_cannot_be_a_job_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        text(**wrong)  # type: ignore[arg-type]
