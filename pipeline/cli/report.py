"""For people: one page about the store, and what changed between two releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import ToolError
from pipeline.system import untrusted

if TYPE_CHECKING:
    from pipeline.report.compare import Comparison, ReleaseChange
    from pipeline.store.record import Release
    from pipeline.store.store import Store

Files = Annotated[bool, typer.Option("--files", help="Also compare files and folders.")]
Packages = Annotated[bool, typer.Option(help="Compare packages, from SBOMs or the .sqsh.")]


def report(
    file: Annotated[Path, typer.Option("--output", "-o", help="File of the page.")] = Path("report.html"),
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    packages: Packages = True,
    files: Files = False,
) -> None:
    """Write one HTML page about the store.

    It has search, filters, sizes, what changed and the srun lines. It is one file of at most 2 MB that loads
    nothing from elsewhere.

    Example: sqshpipe report --store /fsx/containers -o report.html
    """
    from datetime import datetime, timezone

    from pipeline.cli.progress import ConsoleProgress
    from pipeline.cli.stores import look_up_store
    from pipeline.report.gather import gather
    from pipeline.report.page import page

    opened = look_up_store(store, config)
    with ConsoleProgress().stage("report") as task:
        gathered = gather(
            opened,
            now=datetime.now(timezone.utc),
            packages=packages,
            files=files,
            task=task,
        )
        _write(file, page(gathered))
    output.data(str(file))


def _write(file: Path, content: str) -> None:
    """Replace the page as a whole, so that a web server never sends half of one."""
    try:
        untrusted.replace_file(file, content.encode())
    except OSError as error:
        raise ToolError(f"cannot write {file}: {error.strerror}", hint="choose another --output") from error


def diff(
    before: options.ReleaseName,
    after: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    packages: Packages = True,
    files: Files = False,
    as_json: options.Json = False,
) -> None:
    """Show what changed between two releases.

    Base, inputs, size, scan, layers and packages are compared.

    Example: sqshpipe diff demo:v1.0 demo:latest
    """
    from pipeline.cli.stores import look_up_store
    from pipeline.report.compare import Comparer

    opened = look_up_store(store, config)
    one, other = (_release(opened, name, platform) for name in (before, after))
    found = Comparer(opened.layout, packages=packages, files=files)(one, other)
    if as_json:
        output.data_json(found.as_json())
        return
    for line in _lines(found):
        output.data(line)


def _release(store: Store, name: str, platform: str | None) -> Release:
    """A release by any of its names, whatever its state: a yanked one can be compared too."""
    from pipeline.cli.stores import host_platform
    from pipeline.config.names import split_name

    image, wanted = split_name(name)
    version = store.state(image).current(wanted) or wanted
    wanted_platform = platform or host_platform()
    return store.release(image, version, wanted_platform) or store.resolve(name, wanted_platform)


def _lines(found: Comparison) -> list[str]:
    lines = [f"{found.before} → {found.after}"]
    lines += _table("", found.facts)
    if found.dockerfile:
        lines += ["", "Dockerfile", *(f"  {line}" for line in found.dockerfile)]
    lines += _table(found.shared_layers, found.layers)
    if found.packages is not None:
        count = f"{len(found.packages)} package{'' if len(found.packages) == 1 else 's'}"
        lines += _table(f"{count}, from the {found.packages_from}s", found.packages)
    if found.files is not None:
        files = found.files
        counts = f"{files.added} files added, {files.removed} removed, {files.changed} changed"
        lines += _table(counts, files.folders) or ["", counts]
    if found.nothing:
        lines.append("nothing changed")
    return [*lines, *(["", found.note] if found.note else [])]


def _table(title: str, changes: tuple[ReleaseChange, ...]) -> list[str]:
    """Changes in columns that fit the terminal; what does not fit goes to a line of its own."""
    import shutil

    from pipeline.report.text import cells, padded

    if not changes:
        return []
    width = shutil.get_terminal_size((100, 24)).columns
    first = max(cells(one.what) for one in changes)
    second = max(cells(one.before) for one in changes)
    lines = ["", title] if title else []
    for one in changes:
        row = f"  {padded(one.what, first)}  {padded(one.before, second)}  → {one.after}"
        if cells(row) > width:
            lines += [f"  {one.what}", f"      {one.before}", f"    → {one.after}"]
        else:
            lines.append(row)
    return lines
