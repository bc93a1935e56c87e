"""``sqshpipe init``: the first files of somebody's own repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import ConfigError, SqshpipeError, ToolError
from pipeline.system import untrusted

_STORE = Path("/fsx/containers")
_REPOSITORY = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def init(
    name: Annotated[str, typer.Argument(help="The first image.")] = "my-training",
    base: Annotated[str, typer.Option("--base", help="Base image.")] = "nvcr.io/nvidia/pytorch:24.01-py3",
    registry: options.Registry = None,
    store: options.Store = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where to write.")] = Path(),
) -> None:
    """Write a first images.yaml, Dockerfile and workflow.

    The store that --store names is created when it is not there. Existing files are kept. Example:
    sqshpipe init my-training --registry registry.example.com/team
    """
    import jinja2

    from pipeline.config.ecr_hosts import parse_host
    from pipeline.config.names import check_image
    from pipeline.oci.reference import Reference

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.cli", "starters"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML and a Dockerfile; values are checked, or quoted by tojson
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    action = _action()
    values = {
        "name": check_image(name),
        "base": str(Reference.parse(base)),
        "registry": registry or "registry.example.com/team",
        "scanner": "auto" if parse_host((registry or "").partition("/")[0]) else "none",
        "store": str(store or _STORE),
        "action": action,
    }
    places = {
        "images.yaml": "images.yaml",
        f"dockerfiles/{name}/Dockerfile": "Dockerfile",
        f"dockerfiles/{name}/train.py": "train.py",
        ".github/workflows/images.yml": "images.yml",
    }
    if (folder / "images.yaml").exists():
        raise ConfigError(
            f"{folder / 'images.yaml'} is there already",
            hint=f"add an entry for {name} to it: base, and dockerfile if something is built",
        )
    for place, template in places.items():
        path = folder / place
        if path.exists():
            output.note(f"{path} exists already and is not changed")
            continue
        text = environment.get_template(f"{template}.j2").render(**values)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(untrusted.create_exclusive(path, mode=0o666), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ToolError(f"cannot write {path}: {error.strerror}") from error
        output.data(str(path))
    new = _without_store(store)
    if not output.is_quiet():
        if new:
            output.note(new)
        if not action:
            output.note("the workflow says OWNER/sqshpipe@v1: put who has your sqshpipe at GitHub")
        output.note(f"next: sqshpipe lock, sqshpipe plan, sqshpipe release {name} --tag v1.0")


def _without_store(root: Path | None) -> str:
    """Create the store that was named, in a folder that is there; else the sentence with the command.

    The default is never created: on a machine that does not mount it, it would fill the root disk.
    """
    from pipeline.store.creation import create_command, is_store
    from pipeline.store.store import Store

    store = Store(root or _STORE)
    command = f"once, on a machine that mounts its file system: {create_command(store.root)}"
    try:
        if is_store(store.layout):
            return ""
        if root is None or not store.root.parent.is_dir():
            return command
        store.create()
    except SqshpipeError as error:
        return f"{error.headline}; {command}"
    except OSError as error:
        return f"cannot look at {store.root}: {error.strerror}; {command}"
    return f"{store.root} is a store now"


def _action() -> str:
    """OWNER/NAME@COMMIT of this program's action, where pip installed the program from GitHub (PEP 610).

    Empty otherwise: the same names at GitHub could be somebody else's.
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit

    try:
        found = json.loads(distribution("sqshpipe").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    address = urlsplit(found.get("url", ""))
    name = address.path.strip("/").removesuffix(".git")
    commit = found.get("vcs_info", {}).get("commit_id", "")
    known = address.hostname == "github.com" and address.scheme in ("https", "ssh")
    if known and _REPOSITORY.fullmatch(name) and _COMMIT.fullmatch(commit):
        return f"{name}@{commit}"
    return ""
