"""What we ask of GitHub: put a commit on a branch, and keep one pull request for it.

The token is an app's: a pull request that the workflow's own token opens starts no checks. It travels in the
environment of git and in a header, never in argv.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pipeline.errors import ConfigError, ToolError
from pipeline.github.git import Checkout
from pipeline.system import process

_TIMEOUT = 30.0
_TOKEN_VARIABLES = ("GH_TOKEN", "GITHUB_TOKEN")


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHub:
    """One repository, ``owner/name``, at a server (github.com or one's own)."""

    repository: str
    api: str
    server: str
    token: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> GitHub:
        """As Actions describes it: GITHUB_REPOSITORY, GITHUB_API_URL, GITHUB_SERVER_URL and a token.

        Raises ConfigError for what is missing.
        """
        token = next((os.environ[name] for name in _TOKEN_VARIABLES if os.environ.get(name)), "")
        repository = os.environ.get("GITHUB_REPOSITORY", "")
        for name, value in (("GITHUB_REPOSITORY", repository), ("GH_TOKEN", token)):
            if not value:
                raise ConfigError(f"{name} is not set", hint="a pull request needs OWNER/NAME and a token")
        return cls(
            repository=repository,
            api=os.environ.get("GITHUB_API_URL", "https://api.github.com"),
            server=os.environ.get("GITHUB_SERVER_URL", "https://github.com"),
            token=token,
        )

    def fetch(self, checkout: Checkout, branch: str) -> str | None:
        """The commit of origin's ``branch``, brought here; None when there is no such branch."""
        there = self._tip(checkout, branch)
        if there:
            argv: list[str | Path] = ["git", "-C", checkout.root, "fetch", "--quiet", "--no-tags", "origin"]
            process.run([*argv, f"refs/heads/{branch}"], extra_env=self._git_environment(), timeout=_TIMEOUT)
        return there or None

    def push(self, checkout: Checkout, commit: str, branch: str) -> bool:
        """Make ``branch`` of origin ``commit``, whatever it was; False when it is that already."""
        there = self._tip(checkout, branch)
        if there == commit:
            return False
        # The lease refuses when somebody pushed to the branch since we looked.
        lease = f"--force-with-lease=refs/heads/{branch}:{there}"
        target = f"{commit}:refs/heads/{branch}"
        argv: list[str | Path] = ["git", "-C", checkout.root, "push", "--quiet", lease, "origin", target]
        process.run(argv, extra_env=self._git_environment(), timeout=_TIMEOUT)
        return True

    def pull_request(self, branch: str, base: str, title: str, text: str) -> str:
        """Open a pull request, or bring the open one of ``branch`` up to date; gives its address.

        Raises ToolError with what GitHub says.
        """
        owner = self.repository.partition("/")[0]
        content = {"title": title, "body": text}
        there = self._ask(
            "GET", "/pulls", params={"head": f"{owner}:{branch}", "base": base, "state": "open"}
        )
        if there:
            answer = self._ask("PATCH", f"/pulls/{there[0]['number']}", json=content)
        else:
            answer = self._ask("POST", "/pulls", json={**content, "head": branch, "base": base})
        return str(answer["html_url"])

    def _tip(self, checkout: Checkout, branch: str) -> str:
        argv: list[str | Path] = ["git", "-C", checkout.root, "ls-remote", "origin", f"refs/heads/{branch}"]
        said = process.run(argv, extra_env=self._git_environment(), timeout=_TIMEOUT)
        return said.stdout.split("\t")[0].strip()

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/vnd.github+json"}
        address = f"{self.api}/repos/{self.repository}{path}"
        try:
            answer = httpx.request(method, address, headers=headers, timeout=_TIMEOUT, **more)
        except httpx.HTTPError as error:
            raise ToolError(f"{self.api} does not answer: {type(error).__name__}") from None
        if answer.is_error:
            message = _message(answer)
            hint = (
                "the app needs: contents and pull requests, read and write"
                if answer.status_code == 403
                else ""
            )
            raise ToolError(f"GitHub refuses {method} {path} of {self.repository}: {message}", hint=hint)
        return answer.json()

    def _git_environment(self) -> dict[str, str]:
        word = base64.b64encode(f"x-access-token:{self.token}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{self.server}/.extraheader",
            "GIT_CONFIG_VALUE_0": f"Authorization: basic {word}",
            "GIT_TERMINAL_PROMPT": "0",
        }


def _message(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code} {answer.json()['message']}"
    except (ValueError, LookupError, TypeError):
        return str(answer.status_code)
