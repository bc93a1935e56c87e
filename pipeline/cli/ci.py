"""``sqshpipe ci``: what the workflows call. They hold no logic of their own."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError, SqshpipeError, ToolError
from pipeline.system import untrusted

if TYPE_CHECKING:
    from pipeline.github.event import Run
    from pipeline.image.push import PushedImage

ci = Verbs("What the GitHub workflows call.")

Name = Annotated[str, typer.Argument(help="An image of images.yaml.", show_default=False)]
Version = Annotated[str, typer.Option("--tag", "-t", help="The version.")]


@ci.command()
def plan(config: options.ConfigFile = options.DEFAULT_CONFIG) -> None:
    """Say what this run's event asks for: images, version, whether to publish, whether to trust it."""
    from pipeline.config.names import check_version
    from pipeline.config.reading import load
    from pipeline.github.event import decide
    from pipeline.github.summary import wanted_markdown
    from pipeline.plan.affected import affected_since

    settings = load(config)
    reasons: dict[str, tuple[str, ...]] = {}

    def affected(revision: str, exact: bool) -> list[str]:
        reasons.update(
            {found.image: found.reasons for found in affected_since(settings, revision, exact=exact)}
        )
        return list(reasons)

    wanted = decide(_run_from_environment(config), list(settings.images), affected)
    for name in wanted.images:  # refused now, not after a build by the publishing that cannot take it
        check_version(wanted.version, channels=settings.image(name).channels)
    decided = {
        "images": json.dumps(list(wanted.images)),
        "version": wanted.version,
        "publish": json.dumps(wanted.publish),
        "trusted": json.dumps(wanted.trusted),
    }
    _outputs(decided)
    _summary(wanted_markdown(wanted, reasons))
    output.data_json({**decided, "images": list(wanted.images), "reason": wanted.reason})


@ci.command()
def check(
    name: Name,
    tag: Version,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    registry: options.Registry = None,
    until_scan: Annotated[
        bool,
        typer.Option("--until-scan", envvar="SQSHPIPE_UNTIL_SCAN", help="Stop after the scan."),
    ] = False,
    sarif: Annotated[Path | None, typer.Option("--sarif", help="Where the findings go.")] = None,
) -> None:
    """Build, scan, convert, verify and test an image without publishing it; print repository@digest."""
    from pipeline.cli.release import opened
    from pipeline.config.names import check_version
    from pipeline.github.summary import checked_markdown
    from pipeline.release.path import release
    from pipeline.release.run import Stage
    from pipeline.scan.gate import Blocked

    reference, verdict, error = "", None, ""

    def pushed(image: PushedImage) -> None:
        nonlocal reference
        reference = str(image.reference)

    with opened(name, config, registry=registry) as opening:
        version = check_version(tag, channels=opening.spec.channels)
        until = Stage.SCAN if until_scan else Stage.TEST
        try:
            reached = release(opening.run, opening.spec, version, until=until, on_pushed=pushed)
            verdict = reached.report.verdict if reached.report else None
        except SqshpipeError as failure:
            error = str(failure)
            verdict = failure.verdict if isinstance(failure, Blocked) else None
            raise
        finally:
            if sarif is not None and verdict is not None:
                _write_sarif(sarif, verdict, name, reference, opening.spec.dockerfile, config)
            findings = verdict.as_json() if verdict is not None else None
            stages = opening.console.as_json()
            _summary(
                checked_markdown(name, reference=reference, stages=stages, verdict=findings, error=error)
            )
    opening.console.summary()
    _outputs({"reference": reference})
    output.data(reference)


@ci.command()
def publish(
    name: Name,
    tag: Version,
    reference: Annotated[str, typer.Option("--reference", help="What was built: repository@sha256:…")],
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
) -> None:
    """Publish the image that another machine built and handed over by digest; print the path."""
    from pipeline.cli.release import notifying, opened
    from pipeline.config.names import check_version
    from pipeline.github.summary import checked_markdown
    from pipeline.release.path import release
    from pipeline.release.pinned import verify_handoff

    error, path = "", Path()
    with (
        opened(name, config, store=store, registry=registry) as opening,
        notifying(opening, tag) as message,
    ):
        try:
            version = check_version(tag, channels=opening.spec.channels)
            verify_handoff(opening.run, opening.spec, reference)
            made = release(opening.run, opening.spec, version).release
            path = made.public_path if made else path
            message.path = str(path)
        except SqshpipeError as failure:
            error = str(failure)
            raise
        finally:
            stages = opening.console.as_json()
            _summary(checked_markdown(name, reference=reference, stages=stages, verdict=None, error=error))
    opening.console.summary()
    _outputs({"path": str(path)})
    output.data_path(path)


def _run_from_environment(config: Path) -> Run:
    from pipeline.github.event import Run
    from pipeline.github.git import Checkout

    found = {
        name: os.environ.get(f"GITHUB_{name}", "") for name in ("EVENT_NAME", "EVENT_PATH", "REF", "SHA")
    }
    missing = [f"GITHUB_{name}" for name, value in found.items() if not value]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not set", hint="sqshpipe ci runs inside of GitHub Actions"
        )
    try:
        payload = json.loads(Path(found["EVENT_PATH"]).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{found['EVENT_PATH']} cannot be read as an event: {error}") from error
    checkout = Checkout.around(config.resolve().parent)
    return Run(
        name=found["EVENT_NAME"],
        payload=payload,
        ref=found["REF"],
        sha=found["SHA"],
        committed=datetime.fromisoformat(checkout.committed()),
    )


def _outputs(values: dict[str, str]) -> None:
    """For later steps and jobs; each value is one line."""
    path = os.environ.get("GITHUB_OUTPUT")
    for name, value in values.items():
        if not value.isprintable():  # a line break would begin another output
            raise ConfigError(f"the output {name} would be {value!r}, which is not plain text of one line")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in values.items())


def _summary(text: str) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _write_sarif(
    path: Path, verdict: Any, name: str, reference: str, dockerfile: Path | None, config: Path
) -> None:
    from pipeline.scan.sarif import as_sarif

    file = dockerfile or config
    root = config.resolve().parent
    location = (
        file.resolve().relative_to(root).as_posix() if file.resolve().is_relative_to(root) else file.name
    )
    text = json.dumps(as_sarif(verdict, image=name, reference=reference, location=location))
    try:
        untrusted.replace_file(path, text.encode())
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}") from error
