"""Words of a registry, a tool or an image went as they were to where words act: GitHub's runner takes orders
from what a step prints, its pages make links and pictures of Markdown, Slack calls a channel, and a terminal
heeds what JSON leaves unescaped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from pipeline import text as words
from pipeline.bases.refresh import Problem, RefreshResult, pull_request
from pipeline.cli import ci, output
from pipeline.config.types import Notify
from pipeline.errors import ConfigError, RegistryError, ToolError
from pipeline.github.event import Wanted
from pipeline.github.summary import checked_markdown, wanted_markdown
from pipeline.notify.messages import Notification, deliver
from pipeline.oci.reference import Reference
from pipeline.system import process

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
    output.note(order)
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
    found = RefreshResult(changes=(), problems=(problem,), lock=None, tags={})  # type: ignore[arg-type]
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
    deliver(
        Notify(webhook_env="HOOK", on=("failed",)),
        Notification(kind="failed", image="a", text=text, about="x"),
    )
    assert "<" not in sent[0]
    assert "\u202e" not in sent[0]
    assert "the registry says" in sent[0]


def test_only_details_of_an_error_make_lines(capsys: pytest.CaptureFixture[str]) -> None:
    error = ToolError("a\nb\r\u2028c", hint="d\ne", details=["  $ tool", "f\ng\th"])
    assert error.headline == "a\\nb\\r\\u2028c"
    assert error.message.count("\n") == 2
    output.failure(error)
    printed = capsys.readouterr().err
    assert printed == (
        "sqshpipe: a\\nb\\r\\u2028c\n            $ tool\n          f\\ng       h\n          d\\ne\n"
    )


def test_an_error_that_is_raised_anew_keeps_its_lines(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nprintf 'one\\n\\033[31mtwo\\tand\\n'\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ToolError) as caught:
        process.run([broken])
    assert caught.value.details[1:] == ("  | one", "  | two     and")
    assert "\\n" not in caught.value.message
    assert "\\t" not in caught.value.message


@pytest.mark.parametrize("text", ["v1\nreference=evil", "v1\rx", "v1\x85x"])
def test_an_output_of_a_step_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    with pytest.raises(ConfigError, match="the output version"):
        ci._outputs({"version": text})
    assert not (tmp_path / "outputs").exists()


def test_code_in_markdown_ends_where_we_end_it() -> None:
    page = checked_markdown("de`mo", reference="a`\n# b | c", stages=[], verdict=None, error="")
    assert "`a'\\n# b \\| c`" in page
    assert "### ✅ de\\`mo" in page


def test_bytes_of_a_file_name_are_escaped_as_bytes() -> None:
    assert words.escaped("a\udcff\udc9bé한\ud800") == "a\\xff\\x9bé한\\ud800"
    assert words.escaped(words.escaped("\x1b\n")) == "\\x1b\\n"
    assert words.said("\x1b[1;31mred\x1b[0m\tx\x07\r") == "red     x\\x07"
