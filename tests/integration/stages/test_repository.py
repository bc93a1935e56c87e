"""ECR repositories made, compared and changed, against moto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.aws.ecr import Ecr
from pipeline.config.reading import load
from pipeline.config.types import EcrSettings, RegistrySettings
from pipeline.doctor import _repositories
from pipeline.errors import ConfigError
from pipeline.image import registry_rules, repository
from tests.support.command_line import app
from tests.support.servers import aws


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with aws.moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def ecr(moto: str, monkeypatch: pytest.MonkeyPatch) -> Ecr:
    aws.use(monkeypatch, moto)
    return Ecr(aws.ACCOUNT, aws.REGION)


def settings(**more: object) -> EcrSettings:
    return EcrSettings(account=aws.ACCOUNT, region=aws.REGION, prefix="team", **more)  # type: ignore[arg-type]


def named(found: tuple[repository.Difference, ...]) -> list[str]:
    return [one.setting for one in found]


def test_a_missing_repository_is_made_as_wanted_and_then_left_alone(ecr: Ecr) -> None:
    assert named(repository.compare(repository.look(ecr, "team/demo"), "team/demo", settings())) == [
        "repository"
    ]
    assert named(repository.apply(ecr, "team/demo", settings())) == ["repository", "lifecycle"]
    found = repository.look(ecr, "team/demo")
    assert found is not None
    assert (found.mutability, found.scan_on_push, found.encryption) == ("IMMUTABLE", True, "AES256")
    assert found.lifecycle == repository.lifecycle_policy(settings())
    assert repository.compare(found, "team/demo", settings()) == ()
    assert repository.apply(ecr, "team/demo", settings()) == ()


def test_drift_is_reported_and_fixed(ecr: Ecr) -> None:
    ecr.call("create_repository", repositoryName="team/demo", imageTagMutability="MUTABLE")
    deleting = {
        "rules": [
            {
                "rulePriority": 1,
                "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 5},
                "action": {"type": "expire"},
            }
        ]
    }
    ecr.call("put_lifecycle_policy", repositoryName="team/demo", lifecyclePolicyText=json.dumps(deleting))
    found = repository.compare(repository.look(ecr, "team/demo"), "team/demo", settings())
    assert named(found) == ["tags", "scanning", "lifecycle"]
    assert "can delete published images" in found[2].found
    assert named(repository.apply(ecr, "team/demo", settings())) == ["tags", "scanning", "lifecycle"]
    assert repository.compare(repository.look(ecr, "team/demo"), "team/demo", settings()) == ()


def test_encryption_is_set_at_birth_and_cannot_be_changed(ecr: Ecr) -> None:
    key = f"arn:aws:kms:{aws.REGION}:{aws.ACCOUNT}:key/1234"
    wanted = settings(kms_key=key)
    repository.apply(ecr, "team/kms", wanted)
    found = repository.look(ecr, "team/kms")
    assert found is not None
    assert (found.encryption, found.kms_key) == ("KMS", key)
    assert repository.compare(found, "team/kms", settings(kms_key="1234")) == ()
    repository.apply(ecr, "team/plain", settings())
    left = repository.compare(repository.look(ecr, "team/plain"), "team/plain", wanted)
    assert [(one.setting, one.fixable) for one in left] == [("encryption", False)]
    assert repository.apply(ecr, "team/plain", wanted) == ()


def test_the_registrys_rules_count_and_are_only_changed_when_asked(ecr: Ecr) -> None:
    theirs = {
        "scanFrequency": "SCAN_ON_PUSH",
        "repositoryFilters": [{"filter": "other/*", "filterType": "WILDCARD"}],
    }
    ecr.call("put_registry_scanning_configuration", scanType="BASIC", rules=[theirs])
    wanted = settings(scanning="enhanced")
    repository.apply(ecr, "team/demo", wanted)
    assert named(repository.compare(repository.look(ecr, "team/demo"), "team/demo", wanted)) == [
        "registry scanning"
    ]
    assert repository.apply(ecr, "team/demo", wanted) == ()
    assert named(repository.apply(ecr, "team/demo", wanted, registry_scanning=True)) == ["registry scanning"]
    assert repository.compare(repository.look(ecr, "team/demo"), "team/demo", wanted) == ()
    assert repository.compare(repository.look(ecr, "team/demo"), "team/demo", settings()) == ()
    rules = ecr.call("get_registry_scanning_configuration")["scanningConfiguration"]["rules"]
    assert theirs in rules
    assert len(rules) == 2
    with pytest.raises(ConfigError, match="prefix"):
        registry_rules.add_scanning(ecr, EcrSettings(account=aws.ACCOUNT, region=aws.REGION))


def test_a_push_makes_what_it_needs_and_touches_nothing_that_is_there(ecr: Ecr) -> None:
    registry = RegistrySettings(ecr=settings())
    repository.prepare(registry, registry.repository("demo"))
    assert repository.look(ecr, "team/demo") is not None
    ecr.call("put_image_tag_mutability", repositoryName="team/demo", imageTagMutability="MUTABLE")
    assert not repository.ensure(ecr, "team/demo", settings())
    found = repository.look(ecr, "team/demo")
    assert found is not None
    assert found.mutability == "MUTABLE"
    other = RegistrySettings(url="127.0.0.1:1")
    repository.prepare(other, other.repository("demo"))


def test_the_verbs(ecr: Ecr, tmp_path: Path) -> None:
    config = tmp_path / "images.yaml"
    config.write_text(
        f"version: 1\nregistry: {{ecr: {{account: '{aws.ACCOUNT}', region: {aws.REGION}, prefix: team}}}}\n"
        "store: {root: /nowhere}\nimages:\n  demo: {base: 'nvcr.io/nvidia/pytorch:24.01-py3'}\n"
    )
    run = CliRunner()
    dry = run.invoke(app, ["ecr", "apply", "-c", str(config), "--dry-run"])
    assert (dry.exit_code, "team/demo  repository is missing" in dry.stdout) == (10, True), dry
    done = run.invoke(app, ["ecr", "apply", "-c", str(config), "--json"])
    assert [one["setting"] for one in json.loads(done.stdout)["changed"]] == ["repository", "lifecycle"]
    again = run.invoke(app, ["ecr", "apply", "-c", str(config)])
    assert "as images.yaml wants it" in again.stdout
    for role in ("builder", "node", "scanner", "owner"):
        printed = run.invoke(app, ["ecr", "policy", role, "-c", str(config)])
        statements = json.loads(printed.stdout)["Statement"]
        assert statements[0]["Resource"].endswith(":repository/team/*")
        assert not any(
            action.startswith("ecr:Delete") or "BatchDelete" in action for action in statements[0]["Action"]
        )


@pytest.mark.parametrize("rule", ["IMMUTABLE_WITH_EXCLUSION", "MUTABLE_WITH_EXCLUSION"])
def test_exceptions_for_our_tags_are_reported_and_removed(ecr: Ecr, tmp_path: Path, rule: str) -> None:
    filters = [{"filterType": "WILDCARD", "filter": text} for text in ("key-*", "v*")]
    repository.apply(ecr, "team/demo", settings())
    ecr.call(
        "put_image_tag_mutability",
        repositoryName="team/demo",
        imageTagMutability=rule,
        imageTagMutabilityExclusionFilters=filters,
    )
    config = tmp_path / "images.yaml"
    config.write_text(
        f"version: 1\nregistry: {{ecr: {{account: '{aws.ACCOUNT}', region: {aws.REGION}, prefix: team}}}}\n"
        "store: {root: /nowhere}\nimages:\n  demo: {base: 'nvcr.io/nvidia/pytorch:24.01-py3'}\n"
    )
    dry = CliRunner().invoke(app, ["ecr", "apply", "-c", str(config), "--dry-run"])
    assert dry.exit_code == 10, dry
    assert f"tags is {rule} (key-*, v*), not IMMUTABLE" in dry.stdout
    assert named(repository.apply(ecr, "team/demo", settings())) == ["tags"]
    assert repository.compare(repository.look(ecr, "team/demo"), "team/demo", settings()) == ()


def test_the_doctor_says_how_repositories_differ(ecr: Ecr, tmp_path: Path) -> None:
    config = tmp_path / "images.yaml"
    config.write_text(
        f"version: 1\nregistry: {{ecr: {{account: '{aws.ACCOUNT}', region: {aws.REGION}, prefix: team}}}}\n"
        "store: {root: /nowhere}\nimages:\n  demo: {base: 'nvcr.io/nvidia/pytorch:24.01-py3'}\n"
    )
    read = load(config)
    assert _repositories(read).status == "ok", "a push makes a missing repository"
    repository.apply(ecr, "team/demo", settings())
    assert _repositories(read).status == "ok"
    ecr.call(
        "put_image_tag_mutability",
        repositoryName="team/demo",
        imageTagMutability="IMMUTABLE_WITH_EXCLUSION",
        imageTagMutabilityExclusionFilters=[{"filterType": "WILDCARD", "filter": "v*"}],
    )
    found = _repositories(read)
    assert found.status == "warn"
    assert "team/demo: tags is IMMUTABLE_WITH_EXCLUSION (v*)" in found.found
