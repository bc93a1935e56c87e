"""Words of a registry, a tool or an image went as they were to where words act: GitHub's runner takes orders
from what a step prints, its pages make links and pictures of Markdown, Slack calls a channel, and a terminal
heeds what JSON leaves unescaped.
"""

from __future__ import annotations

import json
import re

import httpx
import pytest

from pipeline.actions.event import Wanted
from pipeline.actions.summary import checked_markdown, wanted_markdown
from pipeline.cli import output
from pipeline.config.types import Notify
from pipeline.errors import RegistryError, ToolError
from pipeline.notify import Event, deliver
from pipeline.oci.reference import Reference
from pipeline.refresh import Problem, Refreshed, pull_request

ORDERS = ("::error file=x::owned", "  ::add-mask::a", "done ##[set-output name=reference]evil", "##[group]x")
EVIL = "![p](https://evil.example/p) [docs](https://evil.example) <img src=x> | @everyone `x` **b**\u202e"


def _commands(printed: str) -> list[str]:
    """What GitHub's runner would take as orders: it trims lines, and looks for the older form anywhere."""
    return [line for line in printed.splitlines() if line.strip().startswith("::") or "##[" in line]


@pytest.mark.parametrize("order", ORDERS)
def test_no_line_is_an_order_to_githubs_runner(
    order: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    output.failure(ToolError(f"enroot failed with exit code 1\n{order}", hint=order, details=[order]))
    output.document(f"#!/bin/sh\n{order}\n")
    output.tell(order)
    output.data(order)
    output.data_json({"text": order})
    printed = capsys.readouterr()
    assert _commands(printed.err + printed.out) == []
    assert json.loads(printed.out[printed.out.index("{") :]) == {"text": order}


@pytest.mark.parametrize("order", ORDERS)
def test_elsewhere_words_are_left_alone(
    order: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    output.data(order)
    assert capsys.readouterr().out == order + "\n"


def test_json_for_a_terminal_moves_and_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"한국어": "\x9b2J\x7f\x85\u202eabc\u2066\u200b\u2028\ufeff\x1b[31m"}
    output.data_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed) == value


def _is_text_alone(text: str) -> bool:
    return not re.search(r"(?<!\\)[<\[`*]|(?<!\\)!|@(?!\u200b)|\u202e", text)


def test_a_page_of_markdown_shows_words_and_makes_nothing_of_them() -> None:
    stage = {"stage": "scan", "outcome": "failed", "seconds": 1.0, "text": EVIL}
    finding = {"id": EVIL, "severity": "high", "package": EVIL, "decision": "blocks"}
    verdict = {"scanner": "trivy", "counts": {"high": 1}, "findings": [finding]}
    error = f"{EVIL}\n# {EVIL}"
    page = checked_markdown("demo", reference="", stages=[stage], verdict=verdict, error=error)
    wanted = Wanted(images=("demo",), version="v1", publish=False, trusted=False, reason=EVIL)
    page += wanted_markdown(wanted, {"demo": (EVIL,)}).replace("`v1`", "")
    problem = Problem(base=Reference.parse("h.example/a:1"), images=("demo",), error=RegistryError(EVIL))
    found = Refreshed(changes=(), problems=(problem,), lock=None, tags={})  # type: ignore[arg-type]
    page += pull_request(found)[1].replace("`sqshpipe refresh`", "")
    assert page.count("evil.example") >= 10
    for line in page.splitlines():
        assert _is_text_alone(line), line
    cells = [line for line in page.splitlines() if line.startswith("| ") and "evil" in line]
    assert all(len(re.findall(r"(?<!\\)\|", line)) <= 5 for line in cells)


def test_a_message_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def post(_address: str, *, json: dict[str, str], **_more: object) -> httpx.Response:
        sent.append(json["text"])
        return httpx.Response(200, request=httpx.Request("POST", "https://h.example"))

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setenv("HOOK", "https://h.example")
    text = "the registry says <!channel> <https://evil.example|click>\u202e"
    deliver(Notify(webhook_env="HOOK", on=("failed",)), Event(kind="failed", image="a", text=text, about="x"))
    assert "<" not in sent[0]
    assert "\u202e" not in sent[0]
    assert "the registry says" in sent[0]
