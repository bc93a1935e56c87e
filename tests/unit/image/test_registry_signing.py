"""ECR's managed signing. moto lacks its calls: botocore's stub checks them against AWS's description."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.stub import Stubber

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.aws.ecr_policies import policy
from pipeline.config.types import EcrSettings
from pipeline.errors import ConfigError
from pipeline.image import registry_rules
from pipeline.image.repository import Repository, compare, lifecycle_policy
from tests.unit.aws.test_ecr_trouble import session

PROFILE = "arn:aws:signer:us-east-1:123456789012:/signing-profiles/ours"
THEIRS = "arn:aws:signer:us-east-1:123456789012:/signing-profiles/theirs"
SETTINGS = EcrSettings(account="123456789012", region="us-east-1", prefix="team", signing_profile=PROFILE)


def rule(profile: str, *filters: str) -> dict[str, Any]:
    entries = [{"filter": each, "filterType": "WILDCARD_MATCH"} for each in filters]
    return {"signingProfileArn": profile, **({"repositoryFilters": entries} if entries else {})}


def answering(rules: list[dict[str, Any]] | str, *, put: list[dict[str, Any]] | None = None) -> Ecr:
    """An `Ecr` that has these rules, and expects that `put` is set."""
    client = session().client("ecr")
    stub = Stubber(client)
    if isinstance(rules, str):
        stub.add_client_error("get_signing_configuration", rules)
    else:
        stub.add_response("get_signing_configuration", {"signingConfiguration": {"rules": rules}}, {})
    if put is not None:
        configuration = {"rules": put}
        stub.add_response(
            "put_signing_configuration",
            {"signingConfiguration": configuration},
            {"signingConfiguration": configuration},
        )
    stub.activate()
    ecr = Ecr("123456789012", "us-east-1")
    ecr._clients["ecr"] = client
    return ecr


@pytest.mark.parametrize(
    ("filters", "signed"),
    [
        ([], True),
        (["team/*"], True),
        (["*"], True),
        (["*/demo"], True),
        (["other/*"], False),
        (["team"], False),
        (["team/dem?"], False),
        (["other/*", "team/demo"], True),
    ],
)
def test_what_a_filter_matches(filters: list[str], signed: bool) -> None:
    found = registry_rules.profiles(answering([rule(PROFILE, *filters)]), "team/demo")
    assert found == ((PROFILE,) if signed else ())


def test_without_a_configuration_nothing_is_signed() -> None:
    assert registry_rules.profiles(answering("SigningConfigurationNotFoundException"), "team/demo") == ()
    with pytest.raises(AwsRefused, match="GetSigningConfiguration"):
        registry_rules.profiles(answering("AccessDeniedException"), "team/demo")


@pytest.mark.parametrize("before", ["SigningConfigurationNotFoundException", []])
def test_the_first_rule(before: Any) -> None:
    registry_rules.add_signing(answering(before, put=[rule(PROFILE, "team/*")]), SETTINGS)


def test_rules_of_others_stay_and_ours_is_there_once() -> None:
    others = [rule(THEIRS), rule(THEIRS, "team/*", "x/*")]
    ecr = answering([*others, rule(THEIRS, "team/*")], put=[*others, rule(PROFILE, "team/*")])
    registry_rules.add_signing(ecr, SETTINGS)


def test_without_a_prefix_it_would_sign_for_the_whole_account() -> None:
    with pytest.raises(ConfigError, match="the registry's signing rule needs"):
        registry_rules.add_signing(
            Ecr("123456789012", "us-east-1"),
            EcrSettings(account="123456789012", region="us-east-1", signing_profile=PROFILE),
        )


@pytest.mark.parametrize(
    ("signed_by", "settings", "differs"),
    [
        ((), SETTINGS, True),
        ((THEIRS,), SETTINGS, True),
        ((THEIRS, PROFILE), SETTINGS, False),
        ((), EcrSettings(account="123456789012", region="us-east-1", prefix="team"), False),
    ],
)
def test_the_difference(signed_by: tuple[str, ...], settings: EcrSettings, differs: bool) -> None:
    found = Repository(
        name="team/demo",
        arn="",
        mutability="IMMUTABLE",
        exclusions=(),
        scan_on_push=True,
        encryption="AES256",
        kms_key=None,
        lifecycle=lifecycle_policy(settings),
        scan_type="BASIC",
        registry_scan=None,
        signed_by=signed_by,
    )
    reported = [one.sentence for one in compare(found, "team/demo", settings)]
    assert len(reported) == differs
    assert all("registry signing" in one and "--registry-signing" in one for one in reported)


def test_who_may_sign() -> None:
    given: dict[str, Any] = {"account": "123456789012", "region": "us-east-1", "signing_profile": PROFILE}
    (*_, signing) = policy("builder", **given)["Statement"]
    assert (signing["Action"], signing["Resource"]) == (["signer:SignPayload"], PROFILE)
    (*_, anywhere) = policy("owner", **given)["Statement"]
    assert "ecr:PutSigningConfiguration" in anywhere["Action"]
    assert "Signing" not in str(policy("node", **given))
