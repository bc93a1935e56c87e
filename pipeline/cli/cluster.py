"""Files that are rendered for a whole cluster."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError, ToolError
from pipeline.system import untrusted

cluster = Verbs("Files for a whole cluster: bootstrap script, cluster file.")


DEFAULT_VALUES = Path("cluster.yaml")
Values = Annotated[Path, typer.Option("--values", help="The few values of this cluster.")]


class Kind(str, Enum):
    parallelcluster = "parallelcluster"
    pcs = "pcs"
    hyperpod = "hyperpod"


@cluster.command()
def init(
    kind: Annotated[
        Kind, typer.Option("--for", help="AWS ParallelCluster, AWS PCS, or SageMaker HyperPod.")
    ] = Kind.parallelcluster,
    output_file: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = DEFAULT_VALUES,
) -> None:
    """Write a first cluster.yaml with comments; it can be rendered without a change."""
    from pipeline.cluster import bootstrap as rendering

    if output_file.exists():
        raise ConfigError(f"{output_file} is there already", hint="--output names another file")
    write_out(rendering.starter(kind.value), output_file)
    output.data(str(output_file))


@cluster.command()
def bootstrap(
    values: Values = DEFAULT_VALUES,
    output_file: options.OutputFile = None,
) -> None:
    """Write the script that makes a node ready: enroot, pyxis, importer, limits."""
    from pipeline.cluster import bootstrap as rendering
    from pipeline.cluster import settings

    write_out(rendering.script(settings.load(values)), output_file, executable=True)


@cluster.command()
def config(
    values: Values = DEFAULT_VALUES,
    output_file: options.OutputFile = None,
) -> None:
    """Write the cluster file of AWS ParallelCluster 3."""
    from pipeline.cluster import bootstrap as rendering
    from pipeline.cluster import settings

    write_out(rendering.cluster_file(settings.load(values)), output_file)


def write_out(text: str, output_file: Path | None, *, executable: bool = False) -> None:
    """Write a rendered file, or print it where `output_file` is None. Raises ToolError."""
    if output_file is None:
        output.document(text)
        return
    try:
        output_file.parent.mkdir(parents=True, exist_ok=True)
        untrusted.replace_file(output_file, text.encode(), mode=0o755 if executable else 0o644)
    except OSError as error:
        raise ToolError(f"cannot write {output_file}: {error.strerror}") from error
