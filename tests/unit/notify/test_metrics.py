"""Stages, bytes and seconds for machines: the text file, the trace, and that neither can fail a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline.notify import metrics
from tests.support.servers.registry import Quiet, serving

STAGES = [("pin", "done", 0.5, 0), ("build", "skipped", 0.0, 0), ("convert", "failed", 2.0, 4096)]
FACTS = metrics.facts_of('de"mo', "v1", 3, STAGES)


def test_stages_follow_one_another_and_end_now() -> None:
    pin, build, convert = FACTS.stages
    assert convert.began == pytest.approx(pin.began + 0.5)
    assert build.began == pytest.approx(convert.began)
    assert FACTS.ended == pytest.approx(convert.began + 2.0)


def test_text_file_has_a_help_and_a_type_for_each_metric() -> None:
    lines = metrics.prometheus(FACTS).splitlines()
    names = {line.split("{")[0] for line in lines if not line.startswith("#")}
    for name in names:
        assert sum(line.startswith(f"# TYPE {name} gauge") for line in lines) == 1
        assert sum(line.startswith(f"# HELP {name} ") for line in lines) == 1
    assert 'sqshpipe_run_exit_code{image="de\\"mo"} 3' in lines
    assert 'sqshpipe_stage_seconds{image="de\\"mo",stage="convert",outcome="failed"} 2.000' in lines
    assert 'sqshpipe_stage_bytes{image="de\\"mo",stage="convert",outcome="failed"} 4096' in lines


def test_file_is_written_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQSHPIPE_METRICS", str(tmp_path / "metrics"))
    metrics.report(metrics.facts_of("demo", "v1", 0, STAGES))
    written = tmp_path / "metrics" / "sqshpipe-demo.prom"
    assert "sqshpipe_run_exit_code" in written.read_text()
    assert [path.name for path in written.parent.iterdir()] == ["sqshpipe-demo.prom"]


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SQSHPIPE_METRICS", str(tmp_path / "file"))
    with capture_logs() as logs:
        metrics.report(FACTS)
    assert [line["log_level"] for line in logs] == ["warning"]


def test_trace_has_a_span_for_each_stage_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    got = []

    class Collector(Quiet):
        def do_POST(self) -> None:  # noqa: N802 - the name that the server calls
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            message = trace_service.ExportTraceServiceRequest()
            message.ParseFromString(gzip.decompress(body) if packed else body)
            got.extend(s for r in message.resource_spans for c in r.scope_spans for s in c.spans)
            self.answer(200)

    with serving(Collector) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        metrics.report(FACTS)
    spans = {span.name: span for span in got}
    assert set(spans) == {"image", "pin", "convert"}
    assert spans["convert"].parent_span_id == spans["image"].span_id
    assert spans["convert"].end_time_unix_nano - spans["convert"].start_time_unix_nano == pytest.approx(2e9)
    assert spans["convert"].status.code == 2


def test_a_collector_that_is_not_there_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    started = time.monotonic()
    metrics.report(FACTS)
    assert time.monotonic() - started < 6
