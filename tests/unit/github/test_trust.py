"""Whom the roles trust: one repository, one environment, named refs; and nobody by a wide pattern."""

from __future__ import annotations

import fnmatch

import pytest

from pipeline.errors import ConfigError
from pipeline.github.trust import Role, Trust

TRUST = Trust(repository="team/images", account="123456789012")


def trusted(role: Role, subject: str) -> bool:
    condition = TRUST.policy(role)["Statement"][0]["Condition"]
    patterns = condition["StringLike"]["token.actions.githubusercontent.com:sub"]
    return any(fnmatch.fnmatchcase(subject, pattern) for pattern in patterns)


PUBLISH = "repo:team/images:environment:sqshpipe-publish:ref:"
SUBJECTS = {
    PUBLISH + "refs/heads/main": True,
    PUBLISH + "refs/tags/v1.0": True,
    PUBLISH + "refs/heads/topic": False,
    PUBLISH + "refs/pull/7/merge": False,
    PUBLISH + "refs/tags/nightly": False,
    "repo:team/images:environment:sqshpipe-build:ref:refs/heads/main": False,
    "repo:team/images:ref:refs/heads/main": False,
    "repo:team/images-2:environment:sqshpipe-publish:ref:refs/heads/main": False,
    "repo:other/images:environment:sqshpipe-publish:ref:refs/heads/main": False,
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_who_may_publish(subject: str) -> None:
    assert trusted("publish", subject) is SUBJECTS[subject]


def test_builds_are_also_for_own_pull_requests() -> None:
    stem = "repo:team/images:environment:sqshpipe-build:ref:"
    assert trusted("build", stem + "refs/pull/7/merge")
    assert trusted("build", stem + "refs/heads/main")
    assert not trusted("build", stem + "refs/heads/topic")


def test_audience_and_provider() -> None:
    statement = TRUST.policy("build")["Statement"][0]
    assert statement["Condition"]["StringEquals"] == {
        "token.actions.githubusercontent.com:aud": "sts.amazonaws.com"
    }
    assert statement["Principal"]["Federated"].startswith("arn:aws:iam::123456789012:oidc-provider/")
    assert "repos/team/images/" in TRUST.subject_setup()


@pytest.mark.parametrize("refs", [["*"], ["refs/heads/*"], ["refs/tags/*"], ["main"], ["refs/heads/a:b"]])
def test_wide_patterns_are_refused(refs: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"cannot be trusted|is not a ref"):
        Trust(repository="team/images", account="123456789012", refs=refs)


def test_bad_names_are_refused() -> None:
    for repository, account in (("team", "123456789012"), ("a/b:*", "123456789012"), ("a/b", "12")):
        with pytest.raises(ConfigError):
            Trust(repository=repository, account=account)
