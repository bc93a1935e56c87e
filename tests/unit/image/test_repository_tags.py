"""Whether the tags of an ECR repository can be moved: its rule, and the filters that turn the rule around."""

from __future__ import annotations

import pytest

from pipeline.config.types import EcrSettings
from pipeline.image.repository import Repository, compare, lifecycle_policy

SETTINGS = EcrSettings(account="123456789012", region="us-east-1", prefix="team")


def repository(mutability: str, *filters: str) -> Repository:
    return Repository(
        name="team/demo",
        arn="",
        mutability=mutability,
        exclusions=filters,
        scan_on_push=True,
        encryption="AES256",
        kms_key=None,
        lifecycle=lifecycle_policy(SETTINGS),
        scan_type="BASIC",
        registry_scan=None,
    )


def tags(found: Repository, *, immutable: bool = True) -> list[str]:
    settings = EcrSettings(account="123456789012", region="us-east-1", immutable=immutable)
    return [one.found for one in compare(found, "team/demo", settings) if one.setting == "tags"]


@pytest.mark.parametrize(
    "filters",
    [
        ("key-*",),
        ("v*",),
        ("key-*", "v*"),
        ("*",),
        ("k*",),
        ("*-v1",),
        ("latest", "v1.0"),
        ("dev-*",),
        ("key-ab",),
    ],
)
def test_exceptions_that_let_our_tags_move_are_reported(filters: tuple[str, ...]) -> None:
    assert tags(repository("IMMUTABLE_WITH_EXCLUSION", *filters)) == [
        f"IMMUTABLE_WITH_EXCLUSION ({', '.join(filters)})"
    ]


@pytest.mark.parametrize("filters", [("latest",), ("stable", "latest"), ()])
def test_exceptions_that_cannot_be_ours_are_as_wanted(filters: tuple[str, ...]) -> None:
    assert tags(repository("IMMUTABLE_WITH_EXCLUSION", *filters)) == []


@pytest.mark.parametrize("filters", [("key-*",), ("key-*", "v*"), ("latest",), ()])
def test_mutable_tags_with_exceptions_are_reported(filters: tuple[str, ...]) -> None:
    assert len(tags(repository("MUTABLE_WITH_EXCLUSION", *filters))) == 1


def test_an_exception_for_every_tag_turns_the_rule_around() -> None:
    assert tags(repository("MUTABLE_WITH_EXCLUSION", "*")) == []
    assert tags(repository("IMMUTABLE_WITH_EXCLUSION", "*"), immutable=False) == []
    assert tags(repository("MUTABLE_WITH_EXCLUSION", "v*"), immutable=False) == [
        "MUTABLE_WITH_EXCLUSION (v*)"
    ]
    assert tags(repository("MUTABLE_WITH_EXCLUSION", "latest"), immutable=False) == []


def test_plain_rules() -> None:
    assert tags(repository("IMMUTABLE")) == []
    assert tags(repository("MUTABLE")) == ["MUTABLE"]
    assert tags(repository("IMMUTABLE"), immutable=False) == ["IMMUTABLE"]
    assert tags(repository("MUTABLE"), immutable=False) == []
