"""``sqshpipe scan``: the findings of pushed images, and what the policy says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import options, output
from pipeline.errors import ConfigError, RegistryError, ScanRejected
from pipeline.system import untrusted
from pipeline.text import escaped

if TYPE_CHECKING:
    from pipeline.bases.clients import Clients
    from pipeline.config.types import Config, ImageSpec
    from pipeline.image.push import PushedImage
    from pipeline.scan.policy import Verdict

SCANNERS: dict[str, Literal["ecr", "trivy", "auto"]] = {"ecr": "ecr", "trivy": "trivy", "auto": "auto"}


def scan(
    names: options.Images = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    registry: options.Registry = None,
    scanner: Annotated[
        str | None, typer.Option("--scanner", help="ecr, trivy or auto, instead of images.yaml's.")
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", "-t", help="This tag of the registry, instead of the one of images.yaml."),
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", help="Also write SARIF for GitHub code scanning to this file.")
    ] = None,
    vex: Annotated[
        Path | None,
        typer.Option("--vex", help="Also write the waivers that accept a finding as OpenVEX to this file."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show findings of pushed images; exit with 5 if one is rejected.

    Example: sqshpipe scan megatron-training
    """
    from pipeline.bases.clients import Clients
    from pipeline.config.reading import load

    settings = load(config, registry=registry)
    rejected: list[ScanRejected] = []
    entries: dict[str, object] = {}
    runs: list[object] = []
    statements: list[dict[str, object]] = []
    with Clients(settings) as clients:
        for spec in settings.select(names or ()):
            pushed = _in_registry(settings, spec, clients, tag)
            before = len(rejected)
            verdict = _verdict(settings, spec, pushed, clients, scanner, rejected)
            if verdict is None:
                why = rejected[-1].message if len(rejected) > before else ""
                entries[spec.name] = {
                    "reference": str(pushed.reference),
                    "status": "unknown" if why else "unscanned",
                    "passed": False if why else None,
                    "why": why or "the policy says scanner: none",
                }
                if not as_json:
                    output.data(f"{spec.name}: {'unknown' if why else 'unscanned'}{why and f' ({why})'}")
                continue
            entries[spec.name] = {"reference": str(pushed.reference), **verdict.as_json()}
            runs += _sarif_runs(settings, spec, pushed, verdict)
            statements += _statements(verdict, pushed)
            if not as_json:
                for line in table(spec.name, verdict):
                    output.data(line)
    if as_json:
        output.data_json(entries)
    if sarif is not None:
        _write_sarif(sarif, runs)
    if vex is not None:
        _write_vex(vex, statements)
    if rejected:
        raise rejected[0]


def _verdict(
    settings: Config,
    spec: ImageSpec,
    pushed: PushedImage,
    clients: Clients,
    scanner: str | None,
    rejected: list[ScanRejected],
) -> Verdict | None:
    from dataclasses import replace

    from pipeline.scan.gate import Blocked
    from pipeline.scan.gate import scan as ask
    from pipeline.scan.judge import Judge

    policy = spec.scan
    if scanner is not None:
        if scanner not in SCANNERS:
            raise ConfigError(f"{scanner!r} is not a scanner", hint="ecr, trivy or auto")
        policy = replace(policy, scanner=SCANNERS[scanner])
    try:
        judge = Judge(client_for=clients, credentials=clients.credentials)
        report = ask(pushed, policy, image=spec.name, config=settings, judge=judge)
    except Blocked as error:
        rejected.append(error)
        return error.verdict
    except ScanRejected as error:  # no complete result: the other images are still looked at
        rejected.append(error)
        return None
    return report.verdict


def _in_registry(settings: Config, spec: ImageSpec, clients: Clients, tag: str | None) -> PushedImage:
    """What is in the registry for the image as images.yaml means it now, or under ``tag``."""
    from pipeline.config.lock import read_lock
    from pipeline.image import inputs
    from pipeline.image.pin import pin
    from pipeline.image.push import adopt, pushed_image
    from pipeline.registry.images import image_manifest

    repository = settings.registry.repository(spec.name)
    client = clients(repository.registry)
    base = pin(spec.base, spec.platform, read_lock(settings.lock_path), clients)
    if tag is None:
        key = base.digest.hex if spec.mirrored else inputs.gather(spec, base.digest).key
        found = adopt(repository, key, base, client)
        if found is None:
            raise RegistryError(
                f"{repository} does not have {spec.name} as images.yaml means it now",
                hint=f"sqshpipe release {spec.name} builds and pushes it; --tag scans what has that tag",
            )
        return found
    manifest = image_manifest(client, repository.with_tag(tag), spec.platform)
    return pushed_image(repository, manifest, base, None, adopted=True)


def table(image: str, verdict: Verdict) -> list[str]:
    """The findings as aligned lines, those that block first."""
    counts = ", ".join(f"{number} {name}" for name, number in verdict.counts.items()) or "no findings"
    lines = [f"{image}: {'passes' if verdict.passed else 'is blocked'} ({verdict.scanner}: {counts})"]
    shown = [one for one in verdict.judged if one.decision != "below"]
    rows = [
        (
            one.decision,
            str(one.finding.severity),
            one.finding.id,
            escaped(f"{one.finding.package} {one.finding.version}".strip()),
            escaped(one.finding.fixed_in) or {"no": "no fix", "unknown": "?", "yes": "yes"}[one.finding.fix],
            f"until {one.waiver.until}: {escaped(one.waiver.reason)}" if one.waiver else "",
        )
        for one in shown
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
    cells = ((cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    lines += [("  " + "  ".join(row)).rstrip() for row in cells]
    hidden = len(verdict.judged) - len(shown)
    if hidden:
        lines.append(f"  and {hidden} below the policy's severity")
    return lines


def _sarif_runs(settings: Config, spec: ImageSpec, pushed: PushedImage, verdict: Verdict) -> list[object]:
    from pipeline.scan.sarif import as_sarif

    folder = settings.path.parent.resolve()
    file = spec.dockerfile or settings.path
    location = (
        file.resolve().relative_to(folder).as_posix() if file.resolve().is_relative_to(folder) else file.name
    )
    made = as_sarif(verdict, image=spec.name, reference=str(pushed.reference), location=location)
    runs: list[object] = made["runs"]
    return runs


def _statements(verdict: Verdict, pushed: PushedImage) -> list[dict[str, object]]:
    from datetime import datetime, timezone

    from pipeline.scan.vex import statements

    return statements(verdict.judged, pushed.reference, today=datetime.now(timezone.utc).date())


def _write_vex(path: Path, statements: list[dict[str, object]]) -> None:
    from datetime import datetime, timezone

    from pipeline.scan.vex import document

    _write(path, document(statements, author="sqshpipe", now=datetime.now(timezone.utc)))


def _write_sarif(path: Path, runs: list[object]) -> None:
    whole = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": runs}
    _write(path, (json.dumps(whole, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    try:
        untrusted.replace_file(path, content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
