"""Each event of the workflow, and what it asks for."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.github.event import Run, Wanted, decide

SHA = "0123456789abcdef0123456789abcdef01234567"
BEFORE = "f" * 40
IMAGES = ("a", "b", "c")


def run(name: str, payload: dict[str, Any], ref: str) -> Wanted:
    made = Run(
        name=name, payload=payload, ref=ref, sha=SHA, committed=datetime(2026, 1, 31, tzinfo=timezone.utc)
    )
    asked = {BEFORE: ["b"], "0" * 40: list(IMAGES)}
    exact = name == "push"  # a push is compared with the commit that it replaced, not with a common ancestor

    def affected(commit: str, itself: bool) -> list[str]:
        assert itself is exact
        return asked[commit]

    return decide(made, IMAGES, affected)


def pull_request(head: object) -> dict[str, Any]:
    base = {"sha": BEFORE, "repo": {"full_name": "team/images"}}
    return {"pull_request": {"number": 12, "base": base, "head": {"sha": SHA, "repo": head}}}


def test_own_pull_request_tries_what_it_touches() -> None:
    wanted = run("pull_request", pull_request({"full_name": "team/images"}), "refs/pull/12/merge")
    assert (wanted.images, wanted.version) == (("b",), "pr-12-01234567")
    assert (wanted.publish, wanted.trusted) == (False, True)


@pytest.mark.parametrize("head", [{"full_name": "someone/images"}, None], ids=["fork", "deleted fork"])
def test_a_fork_is_never_trusted(head: object) -> None:
    wanted = run("pull_request", pull_request(head), "refs/pull/12/merge")
    assert (wanted.publish, wanted.trusted) == (False, False)


def test_a_push_publishes_what_it_touches() -> None:
    wanted = run("push", {"before": BEFORE}, "refs/heads/main")
    assert (wanted.images, wanted.version, wanted.publish) == (("b",), "main-20260131-01234567", True)


def test_first_push_and_odd_branches() -> None:
    wanted = run("push", {"before": "0" * 40}, "refs/heads/feature/ü x")
    assert (wanted.images, wanted.version) == (IMAGES, "feature-x-20260131-01234567")


@pytest.mark.parametrize(
    ("name", "payload"), [("push", {"before": BEFORE}), ("release", {"release": {"tag_name": "v1.2"}})]
)
def test_a_tag_or_release_publishes_all_under_it(name: str, payload: dict[str, Any]) -> None:
    wanted = run(name, payload, "refs/tags/v1.2")
    assert (wanted.images, wanted.version, wanted.publish) == (IMAGES, "v1.2", True)


def test_by_hand_one_image_and_one_tag() -> None:
    wanted = run("workflow_dispatch", {"inputs": {"image": "c", "tag": "v9"}}, "refs/heads/main")
    assert (wanted.images, wanted.version, wanted.publish, wanted.trusted) == (("c",), "v9", True, True)


@pytest.mark.parametrize(
    ("name", "payload", "ref"),
    [
        ("workflow_dispatch", {"inputs": {"image": "nope", "tag": "v9"}}, "refs/heads/main"),
        ("workflow_dispatch", {"inputs": {"image": "a", "tag": ""}}, "refs/heads/main"),
        ("pull_request_target", {}, "refs/heads/main"),
        ("push", {}, "refs/notes/x"),
    ],
)
def test_what_nobody_asked_for_is_refused(name: str, payload: dict[str, Any], ref: str) -> None:
    with pytest.raises(ConfigError):
        run(name, payload, ref)
