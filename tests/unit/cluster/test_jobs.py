"""What stands in a job script, and what never does."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.cli import job
from pipeline.cluster.jobs import JobSpec, Launcher, Resolved, Runtime, script
from pipeline.cluster.settings import Jobs
from pipeline.errors import ConfigError
from pipeline.node import software

IMAGE = Resolved(image="demo", version="v1.0", sha256="ab" * 32, path=Path("/fsx/containers/blobs/x.sqsh"))


def text(launcher: Launcher = "pytorch", runtime: Runtime = "pyxis", **more: object) -> str:
    command = ("python", "train.py", "--words", "two words; $(touch /tmp/x)")
    values: dict[str, object] = {"name": "train", "image": IMAGE, "command": command, "nodes": 2}
    return script(JobSpec(**{**values, "launcher": launcher, "runtime": runtime, **more}))  # type: ignore[arg-type]


def srun_line(rendered: str) -> str:
    return rendered[rendered.index("\nsrun") :].replace("\\\n", " ")


@pytest.mark.parametrize("launcher", ["pytorch", "torchrun", "mpi", "mpirun"])
@pytest.mark.parametrize("runtime", ["pyxis", "path", "run", "unpack"])
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
@pytest.mark.parametrize("runtime", ["pyxis", "path", "run", "unpack"])
def test_every_script_passes_shellcheck(launcher: Launcher, runtime: Runtime) -> None:
    jobs = Jobs(
        mounts=("/fsx/data",), env={}, partition="gpu", time=timedelta(hours=50, minutes=5), cpus_per_task=4
    )
    hosts = ("a", "b") if launcher == "mpirun" else ()
    for rendered in (text(launcher, runtime, hosts=hosts), text(launcher, runtime, hosts=hosts, jobs=jobs)):
        done = subprocess.run(["shellcheck", "-"], input=rendered, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
    assert launcher == "mpirun" or "#SBATCH --time=2-02:05:00\n" in rendered


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
    jobs = Jobs(mounts=("/fsx/data", "/scratch:/tmp/s:ro"), env={"NCCL_DEBUG": "INFO", "FI_PROVIDER": "efa"})
    line = srun_line(text(jobs=jobs))
    assert "--container-mounts=/fsx/data:/fsx/data,/scratch:/tmp/s:ro" in line
    assert "--container-env=FI_PROVIDER,NCCL_DEBUG" in line
    assert "export NCCL_DEBUG=INFO\n" in text(jobs=jobs)


@pytest.mark.parametrize(
    ("written", "pyxis", "own"),
    [
        ("/fsx", "/fsx:/fsx", "/fsx:/fsx:rw"),
        ("/fsx:/fsx", "/fsx:/fsx", "/fsx:/fsx:rw"),
        ("/fsx:/data", "/fsx:/data", "/fsx:/data:rw"),
        ("/fsx:ro", "/fsx:/fsx:ro", "/fsx:/fsx:ro"),
        ("/fsx:/data:ro", "/fsx:/data:ro", "/fsx:/data:ro"),
        ("/fsx:/data:rw", "/fsx:/data:rw", "/fsx:/data:rw"),
        ("/fsx:/data:rbind+ro", "/fsx:/data:rbind+ro", None),
    ],
)
def test_a_mount_is_read_only_only_when_it_says_so(written: str, pyxis: str, own: str | None) -> None:
    jobs = Jobs(mounts=(written,))
    for runtime in ("pyxis", "path"):
        assert f"--container-mounts={pyxis} " in srun_line(text(runtime=runtime, jobs=jobs))
    if own:
        assert f"--mount={own} " in srun_line(text(runtime="run", jobs=jobs))
    else:
        with pytest.raises(ConfigError, match="ro or rw"):
            text(runtime="run", jobs=jobs)


def test_the_image_itself_is_writable_only_when_asked() -> None:
    asked = Jobs(container_writable=True)
    assert "--container-writable " in srun_line(text(jobs=asked))
    assert "--container-writable" not in text(jobs=Jobs(mounts=("/fsx",)))
    for runtime in ("run", "unpack"):
        with pytest.raises(ConfigError, match=f"does not go with --runtime {runtime}"):
            text(runtime=runtime, jobs=asked)


def test_old_pyxis_gets_a_container_that_one_task_a_node_has_unpacked() -> None:
    rendered = text(runtime="unpack", jobs=Jobs(mounts=("/fsx",)))
    assert f"sqshpipe node unpack {IMAGE.path} " in rendered
    assert rendered.index("node unpack") < rendered.index("--container-name=sqshpipe-abababababababab ")
    assert "--container-image" not in rendered
    assert "--container-readonly --container-mounts=/fsx:/fsx " in srun_line(rendered).replace("\\\n", "")


@pytest.mark.parametrize(
    ("pinned", "here", "runtime"),
    [
        ("0.24.0", "0.19.0", "pyxis"),
        ("v0.22.0", None, "path"),
        ("0.20.0", None, "run"),
        (None, "0.20.0", "run"),
        (None, "0.24.0", "pyxis"),
        (None, None, "pyxis"),
    ],
)
def test_the_way_follows_the_pyxis_of_the_settings_or_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str | None, here: str | None, runtime: str
) -> None:
    values = tmp_path / "cluster.yaml"
    values.write_text(f"software: {{pyxis: {{version: {pinned}}}}}\n" if pinned else "jobs: {}\n")
    found = tuple(map(int, here.split("."))) if here else None
    monkeypatch.setattr(software, "pyxis_version", lambda: found)
    assert job._runtime(values, job.Launcher.pytorch) == runtime
    assert job._runtime(values, job.Launcher.mpirun) == "pyxis"


def test_values_that_nccl_and_slurm_use_are_taken() -> None:
    jobs = Jobs(env={"NCCL_SOCKET_IFNAME": "^lo,docker0", "WORDS": "a 'b' $(touch /tmp/x)"})
    rendered = text(jobs=jobs)
    assert "export NCCL_SOCKET_IFNAME='^lo,docker0'\n" in rendered
    exports = "\n".join(line for line in rendered.splitlines() if line.startswith("export WORDS"))
    shown = subprocess.run(["bash", "-c", f'{exports}; printf %s "$WORDS"'], capture_output=True, text=True)
    assert shown.stdout == "a 'b' $(touch /tmp/x)"


def test_cpus_are_for_each_rank() -> None:
    jobs = Jobs(cpus_per_task=6, gpus_per_node=8)
    assert "#SBATCH --cpus-per-task=6\n" in text("pytorch", jobs=jobs)
    assert "export SRUN_CPUS_PER_TASK=6" in text("pytorch", jobs=jobs)
    assert "#SBATCH --cpus-per-task=48\n" in text("torchrun", jobs=jobs), "its one task has all ranks"
    assert "cpus-per-task" not in text(jobs=Jobs())


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
