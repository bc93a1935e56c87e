"""Stages, bytes and seconds of a run: as a Prometheus text file, and as an OpenTelemetry trace.

The text file is for node_exporter's textfile collector: one file an image in the folder that
SQSHPIPE_METRICS names (https://prometheus.io/docs/instrumenting/exposition_formats/). The trace needs the
extra ``otel`` and an address in OTEL_EXPORTER_OTLP_ENDPOINT. Neither can fail a run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SqshpipeError
from pipeline.system import untrusted
from pipeline.system.log import log
from pipeline.text import escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """One stage: ``outcome`` is done, skipped or failed; ``began`` in seconds since 1970."""

    name: str
    outcome: str
    began: float
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One image's run; ``code`` is its exit code, ``ended`` in seconds since 1970."""

    image: str
    version: str
    code: int
    ended: float
    stages: Sequence[StageFacts]


def report(facts: RunFacts) -> None:
    """Write and send what the environment asks for; a failure is a warning."""
    folder = os.environ.get("SQSHPIPE_METRICS")
    if folder:
        try:
            path = Path(folder, f"sqshpipe-{facts.image}.prom")
            path.parent.mkdir(parents=True, exist_ok=True)
            untrusted.replace_file(path, prometheus(facts).encode())
        except (OSError, SqshpipeError) as error:
            log.warning("metrics cannot be written", folder=folder, reason=str(error))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        _trace(facts)


def prometheus(facts: RunFacts) -> str:
    """The text exposition format, version 0.0.4; a gauge each, of the last run."""
    image = f'image="{_label(facts.image)}"'
    lines = [
        "# HELP sqshpipe_run_exit_code Exit code of the last run, 0 when it went well.",
        "# TYPE sqshpipe_run_exit_code gauge",
        f"sqshpipe_run_exit_code{{{image}}} {facts.code}",
        "# HELP sqshpipe_run_timestamp_seconds When the last run ended.",
        "# TYPE sqshpipe_run_timestamp_seconds gauge",
        f"sqshpipe_run_timestamp_seconds{{{image}}} {facts.ended:.3f}",
        "# HELP sqshpipe_run_info Version of the last run.",
        "# TYPE sqshpipe_run_info gauge",
        f'sqshpipe_run_info{{{image},version="{_label(facts.version)}"}} 1',
        "# HELP sqshpipe_stage_seconds Time that a stage of the last run took.",
        "# TYPE sqshpipe_stage_seconds gauge",
    ]
    named = [(f'{image},stage="{_label(one.name)}",outcome="{one.outcome}"', one) for one in facts.stages]
    lines += [f"sqshpipe_stage_seconds{{{labels}}} {one.seconds:.3f}" for labels, one in named]
    lines += [
        "# HELP sqshpipe_stage_bytes Bytes that a stage of the last run moved.",
        "# TYPE sqshpipe_stage_bytes gauge",
    ]
    lines += [f"sqshpipe_stage_bytes{{{labels}}} {one.bytes}" for labels, one in named]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return escaped(text).replace("\\", "\\\\").replace('"', '\\"')


def _trace(facts: RunFacts) -> None:
    """A span for the run and one for each stage that ran, sent before the program ends."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import Status, StatusCode, set_span_in_context
    except ImportError:
        log.warning("no trace is sent: install sqshpipe[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "sqshpipe"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=2)))
    tracer = provider.get_tracer("sqshpipe")
    began = min((one.began for one in facts.stages), default=facts.ended)
    root = tracer.start_span("image", start_time=_nanoseconds(began))
    root.set_attributes({"sqshpipe.image": facts.image, "sqshpipe.version": facts.version})
    for one in facts.stages:
        if one.outcome == "skipped":
            continue
        span = tracer.start_span(one.name, set_span_in_context(root), start_time=_nanoseconds(one.began))
        span.set_attributes({"sqshpipe.image": facts.image, "sqshpipe.bytes": one.bytes})
        if one.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(one.began + one.seconds))
    root.set_status(Status(StatusCode.ERROR if facts.code else StatusCode.OK))
    root.end(_nanoseconds(facts.ended))
    provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def facts_of(image: str, version: str, code: int, stages: Sequence[tuple[str, str, float, int]]) -> RunFacts:
    """From the stages' (name, outcome, seconds, bytes), which ran one after the other and end now."""
    ended = time.time()
    began = ended - sum(seconds for _, _, seconds, _ in stages)
    found = []
    for name, outcome, seconds, amount in stages:
        found.append(StageFacts(name=name, outcome=outcome, began=began, seconds=seconds, bytes=amount))
        began += seconds
    return RunFacts(image=image, version=version, code=code, ended=ended, stages=tuple(found))
