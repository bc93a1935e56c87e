"""What is not a Docker Engine, or an invalid address, ended in a traceback; a server that hangs
was waited for half an hour at each question.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline.docker import engine as docker
from pipeline.docker.engine import BuildRequest, Engine
from pipeline.errors import SqshpipeError, ToolError
from pipeline.oci.reference import Reference

VERSION = {"ApiVersion": "1.41", "Version": "20.10"}
INFO = {"OSType": "linux", "Architecture": "x86_64", "DriverStatus": None}
IMAGE = {"Id": "sha256:" + "0" * 64, "Os": "linux", "Architecture": "amd64", "RootFS": {}, "Config": None}
Answers = dict[str, Any]
Start = Callable[[Answers], str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A server on a socket that answers by the end of the path; None: it never does."""
    ends: list[Callable[[], None]] = []
    ended = threading.Event()

    def started(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                answer = next((a for end, a in answers.items() if path.endswith(end)), {})
                if answer is None:
                    ended.wait(60)
                    return
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - a name that http.server asks for

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - see above
                pass

            def address_string(self) -> str:
                return ""

        server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "s"), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        ends.extend((server.shutdown, server.server_close))
        return f"unix://{tmp_path}/s"

    yield started
    ended.set()
    for end in ends:
        end()


def everything(engine: Engine, folder: Path) -> None:
    assert engine.has_buildkit
    engine.default_network()
    engine.image("demo:1")
    with (folder / "context").open("w+b") as context:
        engine.build(
            context, "Dockerfile", BuildRequest(tag="x:1", context=folder, path=folder, dockerfile="")
        )
    engine.push(Reference.parse("h.example/a:1"), None)


@pytest.mark.parametrize(
    "nonsense", [[], "text", 7, {"Id": 7}, b"{", b"\xff\xfe", [[1]], {"error": {"a": 1}}]
)
@pytest.mark.parametrize("where", ["/version", "/info", "/networks", "/json", "/build", "/push"])
def test_an_invalid_answer(where: str, nonsense: Any, start: Start, tmp_path: Path) -> None:
    answers = {"/version": VERSION, "/info": INFO, "/networks": [], "/json": IMAGE, where: nonsense}
    with pytest.raises(SqshpipeError) as caught, Engine.connect(start(answers)) as engine:
        everything(engine, tmp_path)
    assert caught.value.exit_code in (3, 4, 6)


@pytest.mark.parametrize("where", ["/info", "/networks", "/json"])
def test_a_question_that_is_never_answered(
    where: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "_ANSWER_TIMEOUT", 0.2)
    answers = {"/version": VERSION, "/info": INFO, "/networks": [], "/json": IMAGE, where: None}
    with Engine.connect(start(answers)) as engine:
        with pytest.raises(ToolError, match="the Docker Engine does not answer") as caught:
            everything(engine, tmp_path)
        assert "hangs" in caught.value.hint


@pytest.mark.parametrize(
    "host", ["tcp://:abc", "tcp://127.0.0.1:99999999", "tcp://[::1", "nonsense", "unix://", "fd://", "\0"]
)
def test_an_invalid_address(host: str) -> None:
    with pytest.raises(ToolError, match="no Docker Engine answers at"):
        Engine.connect(host)
