"""Renders what a cluster needs at its start: the node bootstrap script and ParallelCluster's file."""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

import yaml

from pipeline.cluster import merging
from pipeline.cluster.render import render
from pipeline.cluster.settings import ClusterSettings
from pipeline.errors import ConfigError
from pipeline.node import job_mount, shim, software
from pipeline.node.install import ImporterSettings, importer_source
from pipeline.store import trust
from pipeline.store.keys import public_keys

Kind = Literal["parallelcluster", "pcs", "hyperpod"]


def script(settings: ClusterSettings) -> str:
    """The OnNodeConfigured script, complete in one file: it carries the importer with it."""
    prefix = PurePosixPath(settings.prefix)
    return render(
        "bootstrap.sh",
        s=settings,
        hooks=hooks(prefix / "bin" / "pyxis-importer.json", str(prefix / "bin" / "sqshpipe")),
        kernel=".".join(map(str, job_mount.KERNEL)),
        importer_source=importer_source().decode().rstrip("\n"),
        importer_settings=importer_settings(settings).as_json().rstrip("\n"),
        policy_file=trust.NODE_POLICY,
        policy=_policy(settings),
        shim_source=shim.script().rstrip("\n"),
        server=software,
    )


def _policy(settings: ClusterSettings) -> str:
    """What the nodes' policy of signatures contains; empty without one. Raises ConfigError for a bad key."""
    if settings.require_signature is None:
        return ""
    keys = public_keys(settings.require_signature.encode(), "cluster.yaml: require_signature")
    policy = trust.Required(keys=keys, source=trust.NODE_POLICY, marks=trust.STATE / "signed")
    return policy.as_json().rstrip("\n")


def importer_settings(settings: ClusterSettings) -> ImporterSettings:
    """The settings of the pyxis importer for the nodes of this cluster."""
    return ImporterSettings(
        store=Path(settings.store),
        registries=settings.registries,
        missing=settings.missing,
        local=Path(settings.local),
        cluster=settings.name,
        mounts=settings.mounts,
    )


def cluster_file(settings: ClusterSettings) -> str:
    """The cluster file of AWS ParallelCluster 3. Raises ConfigError for what it cannot do without."""
    for part, name in ((settings.head, "head"), (settings.gpu, "gpu"), (settings.scripts, "scripts")):
        if part is None:
            raise ConfigError(
                f"cluster.yaml has no {name}", hint="a cluster file needs head, gpu and scripts"
            )
    mounts = [each.mount for each in (settings.lustre, settings.openzfs) if each]
    if mounts and not any(settings.store.startswith(f"{mount}/") for mount in mounts):
        raise ConfigError(
            f"the store {settings.store} lies on no shared file system of this cluster: {', '.join(mounts)}",
            hint="set store to a folder below one of them",
        )
    text = render("parallelcluster.yaml", s=settings)
    if not settings.extra:
        return text
    made = merging.merged(yaml.safe_load(text), settings.extra)
    return text.partition("\n")[0] + "\n" + yaml.safe_dump(made, sort_keys=False)


def starter(kind: Kind) -> str:
    """A first cluster.yaml for a kind of cluster, with comments; it renders unchanged."""
    return render("cluster.yaml", kind=kind)


def hooks(settings: PurePath, command: str) -> dict[str, str]:
    """Slurm's Prolog and Epilog by file name: they mount what a job's comment names, and unmount it.

    `settings` is the importer's file on the nodes, `command` sqshpipe there. Raises ConfigError for a path
    that is not absolute.
    """
    for text in (str(settings), command):
        if not text.startswith("/") or not text.isprintable():
            raise ConfigError(f"{text!r} is not an absolute path")
    return {name: render(f"{name}.sh", settings=settings, command=command) for name in ("prolog", "epilog")}
