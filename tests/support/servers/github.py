"""GitHub as far as a pull request needs it."""

from __future__ import annotations

import json

from tests.support.servers.registry import Quiet


class FakeGitHub:
    """The two calls that a pull request takes, remembered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.open: list[dict[str, object]] = []
        fake = self

        class Handler(Quiet):
            def do_GET(self) -> None:  # noqa: N802 - the name that the server calls
                assert self.headers["Authorization"] == "Bearer app-token"
                fake.asked.append(("GET", self.path, {}))
                self.answer(200, json.dumps(fake.open).encode())

            def do_POST(self) -> None:  # noqa: N802
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append((self.command, self.path, sent))
                fake.open = [{"number": 7, "html_url": "https://example.com/pull/7"}]
                self.answer(201, json.dumps(fake.open[0]).encode())

            do_PATCH = do_POST  # noqa: N815

        self.handler = Handler
