"""Messages: each once, tried again, never in the way, and without a secret in what is logged."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import boto3
import pytest
from structlog.testing import capture_logs

from pipeline.config.types import Notify
from pipeline.notify.messages import Notification, Notifier, deliver
from tests.support.servers.registry import Quiet, serving

EVERYTHING = frozenset({"published", "blocked", "failed", "base-moved"})
COMMAND = Notify(command=("true",), on=EVERYTHING)
PUBLISHED = Notification(
    kind="published", image="demo", text="demo:v1 is published", about="v1", details={"path": "/s/demo"}
)


class Recorder:
    """Stands in for the network: remembers, and fails as often as the test says."""

    def __init__(self, failures: int = 0) -> None:
        self.sent: list[Notification] = []
        self.tries = 0
        self.failures = failures

    def __call__(self, _: Notify, event: Notification) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise OSError("unreachable")
        self.sent.append(event)


def notify(folder: Path, send: Recorder, *events: Notification, target: Notify = COMMAND) -> None:
    with Notifier((target,), folder / "sent", send=send, pause=0.01) as notifier:
        for event in events:
            notifier.send(event)


def test_each_event_is_reported_once_also_by_a_later_run(tmp_path: Path) -> None:
    send = Recorder()
    notify(tmp_path, send, PUBLISHED)
    notify(tmp_path, send, PUBLISHED)
    other = Notification(kind="published", image="demo", text="demo:v2 is published", about="v2")
    notify(tmp_path, send, other)
    assert send.sent == [PUBLISHED, other]


def test_a_failure_is_tried_again(tmp_path: Path) -> None:
    send = Recorder(failures=2)
    notify(tmp_path, send, PUBLISHED)
    assert (send.sent, send.tries) == ([PUBLISHED], 3)


def test_what_could_not_be_sent_is_a_warning_and_sent_by_the_next_run(tmp_path: Path) -> None:
    send = Recorder(failures=3)
    with capture_logs() as logs:
        notify(tmp_path, send, PUBLISHED)
    assert send.sent == []
    assert [line["log_level"] for line in logs] == ["warning"]
    notify(tmp_path, send, PUBLISHED)
    assert send.sent == [PUBLISHED]


def test_only_what_is_asked_for_is_reported(tmp_path: Path) -> None:
    send = Recorder()
    notify(tmp_path, send, PUBLISHED, target=Notify(command=("true",), on=frozenset({"failed"})))
    assert send.sent == []


def test_a_message_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    never = threading.Event()
    started = time.monotonic()
    with Notifier(
        (COMMAND,), tmp_path, send=lambda _target, _event: never.wait(30) and None, patience=0.2
    ) as notifier:
        notifier.send(PUBLISHED)
    assert time.monotonic() - started < 5
    never.set()


def test_no_place_for_markers_is_no_reason_to_be_silent(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("a file, not a folder")
    send = Recorder()
    notify(tmp_path, send, PUBLISHED)
    assert send.sent == [PUBLISHED]


def test_webhook_gets_slack_text_and_its_address_stays_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[str] = []
    status = [500]

    class Hook(Quiet):
        def do_POST(self) -> None:  # noqa: N802 - the name that the server calls
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.answer(status[0])

    target = Notify(webhook_env="HOOK", on=EVERYTHING)
    with serving(Hook) as address, capture_logs() as logs:
        monkeypatch.setenv("HOOK", f"http://{address}/services/T0/secret-part")
        with Notifier((target,), tmp_path, pause=0.01) as notifier:
            notifier.send(PUBLISHED)
        status[0] = 200
        deliver(target, PUBLISHED)
    assert len(got) == 4
    assert "demo:v1 is published" in got[-1]
    assert "`/s/demo`" in got[-1]
    assert "secret-part" not in str(logs)
    assert "status 500" in str(logs)


def test_command_gets_json_on_stdin(tmp_path: Path) -> None:
    copy = tmp_path / "event.json"
    deliver(Notify(command=("/bin/sh", "-c", f"cat > {copy}"), on=EVERYTHING), PUBLISHED)
    assert json.loads(copy.read_text())["text"] == PUBLISHED.text


def test_sns_gets_subject_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, str]] = []

    class Client:
        def publish(self, **words: str) -> None:
            calls.append(words)

    def client(service: str, *, region_name: str, config: object) -> Client:
        assert (service, region_name) == ("sns", "eu-west-1")
        return Client()

    monkeypatch.setattr(boto3, "client", client)
    topic = "arn:aws:sns:eu-west-1:123456789012:images"
    deliver(Notify(sns=topic, on=EVERYTHING), PUBLISHED)
    assert calls[0]["TopicArn"] == topic
    assert calls[0]["Subject"] == "sqshpipe: demo published"
    assert json.loads(calls[0]["Message"])["about"] == "v1"
