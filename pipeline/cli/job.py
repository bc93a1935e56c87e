"""Verbs for jobs: render a job script, and hand it to Slurm."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, files, options, output
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError, ToolError
from pipeline.system import untrusted

if TYPE_CHECKING:
    from pipeline.cluster.jobs import JobSpec
    from pipeline.cluster.jobs import Runtime as RuntimeName
    from pipeline.store.record import Release

job = Verbs("Job scripts whose ranks share one image.")

Values = Annotated[Path | None, typer.Option("--values", help="cluster.yaml; its part `jobs` is used.")]


class Launcher(str, Enum):
    pytorch = "pytorch"
    torchrun = "torchrun"
    mpi = "mpi"
    mpirun = "mpirun"


class Runtime(str, Enum):
    pyxis = "pyxis"
    path = "path"
    run = "run"
    unpack = "unpack"


@job.command()
def script(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE[:VERSION|:CHANNEL]",
            help="The release; looked up now, not when the job starts.",
            autocompletion=completion.releases,
        ),
    ],
    command: Annotated[list[str], typer.Argument(help="After --: what each rank runs.")],
    store: options.Store = None,
    values: Values = None,
    data: files.Data = None,
    launcher: Annotated[
        Launcher, typer.Option("--launcher", help="pytorch, torchrun, mpi (pmix), or mpirun (no Slurm).")
    ] = Launcher.pytorch,
    runtime: Annotated[
        Runtime | None,
        typer.Option(
            "--runtime",
            help="pyxis (by name), path (pyxis by path), run (without pyxis), unpack (old pyxis, once"
            " a node); default: what the pyxis of --values or of this host can do.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", "-N", min=1, help="Number of nodes.")] = 1,
    name: Annotated[str | None, typer.Option("--name", help="Name of the job; default: the image's.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", help="An additional #SBATCH option; repeatable.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="A node for mpirun; repeatable.")] = None,
    gpus: Annotated[bool, typer.Option("--gpus/--no-gpus", help="Ask Slurm for the GPUs.")] = True,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: stdout.")
    ] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Submit the script and print the job's number.")
    ] = False,
    test_only: Annotated[
        bool, typer.Option("--test-only", help="Ask sbatch whether it would accept the script.")
    ] = False,
) -> None:
    """Write a job script for an image; its digest in the comment lets prune keep the file."""
    from pipeline.cli.stores import host_platform, open_store
    from pipeline.cluster import jobs, settings

    opened = open_store(store)

    def resolved(name: str) -> Release:
        return opened.resolve(name, host_platform())

    release = resolved(image)
    files.require_image(release)
    spec = jobs.JobSpec(
        name=name or release.image,
        image=jobs.Resolved.of(release),
        data=tuple(
            jobs.Data(release=jobs.Resolved.of(resolved(each)), inside=inside)
            for each, inside in files.mounted_data(data)
        ),
        command=tuple(command),
        launcher=launcher.value,
        runtime=runtime.value if runtime else _runtime(values, launcher),
        nodes=nodes,
        gpus=gpus,
        jobs=settings.load_jobs(values) if values else settings.Jobs(),
        extra=tuple(sbatch or ()),
        hosts=tuple(host or ()),
    )
    text = jobs.script(spec)
    if output_file is not None:
        try:
            untrusted.replace_file(output_file, text.encode(), mode=0o755)
        except OSError as error:
            raise ToolError(f"cannot write {output_file}: {error.strerror}") from error
    if submit or test_only:
        _hand_over(spec, text, test_only=test_only)
    elif output_file is None:
        output.document(text)


def _runtime(values: Path | None, launcher: Launcher) -> RuntimeName:
    """What the cluster's pyxis can do without unpacking: the one that cluster.yaml pins, else this host's."""
    from pipeline.cluster import settings
    from pipeline.node import software

    version = settings.load_pyxis(values) if values else None
    version = version or software.pyxis_version()
    if version is None or launcher is Launcher.mpirun:
        return "pyxis"
    found = software.way_to_start(version)
    if found != "pyxis":
        output.note(f"--runtime {found}: {software.pyxis_sentence(version)[1]}")
    return found


def _hand_over(spec: JobSpec, text: str, *, test_only: bool) -> None:
    from pipeline.slurm import client

    if spec.launcher == "mpirun":
        raise ConfigError("a script for mpirun is not Slurm's to take", hint="run it with bash")
    with tempfile.TemporaryDirectory(prefix="sqshpipe-job-") as folder:
        file = Path(folder) / f"{spec.name}.sbatch"
        file.write_text(text, encoding="utf-8")
        if test_only:
            client.check_script(file)
        else:
            output.data(client.submit(file))
