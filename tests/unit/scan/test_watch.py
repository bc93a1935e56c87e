"""Until when Inspector watches what is published. moto lacks GetConfiguration: botocore's stub has it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber
from typer.testing import CliRunner

from pipeline import doctor
from pipeline.aws.ecr import Ecr
from pipeline.cli.plan import _watches
from pipeline.config.reading import load
from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.plan.known import known_releases
from pipeline.scan import watch
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.store.releases import new_store, record_for
from tests.unit.aws.test_ecr_trouble import session

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
IMAGE, OTHER = Digest.of(b"image"), Digest.of(b"other")
PUSHED = datetime(2026, 6, 1, 23, 30, tzinfo=timezone.utc)
_RULE = {
    "scanFrequency": "CONTINUOUS_SCAN",
    "repositoryFilters": [{"filter": "team/*", "filterType": "WILDCARD"}],
}
ENHANCED: dict[str, Any] = {"scanType": "ENHANCED", "rules": [_RULE]}

Stubbed = Callable[..., Ecr]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Stubbed:
    """`Ecr` whose clients answer as given, once each and in this order."""

    def make(*answers: tuple[str, str, dict[str, Any] | str]) -> Ecr:
        clients: dict[str, Any] = {"ecr": session().client("ecr")}
        clients["inspector2"] = session().client("inspector2")
        for service, client in clients.items():
            stub = Stubber(client)
            for of, operation, answer in answers:
                if of != service:
                    continue
                if isinstance(answer, str):
                    stub.add_client_error(operation, answer)
                else:
                    stub.add_response(operation, answer, None)
            stub.activate()
        monkeypatch.setattr(Ecr, "_connect", lambda _, service: clients[service])
        return Ecr("123456789012", "us-east-1")

    return make


def scanning(configuration: dict[str, Any] = ENHANCED) -> tuple[str, str, dict[str, Any]]:
    return "ecr", "get_registry_scanning_configuration", {"scanningConfiguration": configuration}


def images(*details: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return "ecr", "describe_images", {"imageDetails": [{"imageDigest": str(IMAGE), **one} for one in details]}


def set_to(pushed: str = "DAYS_14", used: str = "DAYS_14", mode: str = "") -> tuple[str, str, dict[str, Any]]:
    state = {"rescanDuration": pushed, "pullDateRescanDuration": used}
    state |= {"pullDateRescanMode": mode} if mode else {}
    return "inspector2", "get_configuration", {"ecrConfiguration": {"rescanDurationState": state}}


@pytest.mark.parametrize(
    ("configuration", "pulled", "day"),
    [
        (set_to(), None, "2026-06-16"),
        (set_to(mode="LAST_IN_USE_AT"), 20, "2026-06-16"),
        (set_to(), 20, "2026-06-16"),
        (set_to(mode="LAST_PULL_DATE"), None, "2026-06-16"),
        (set_to(mode="LAST_PULL_DATE"), 20, "2026-07-06"),
        (set_to(mode="LAST_PULL_DATE", used="DAYS_90"), 20, "2026-09-20"),
        (set_to(mode="LAST_PULL_DATE", pushed="DAYS_180"), 20, "2026-11-29"),
        (set_to(pushed="DAYS_3"), None, "2026-06-05"),
        (set_to(pushed="LIFETIME"), None, None),
        (set_to(pushed="LIFETIME", mode="LAST_PULL_DATE"), 1, None),
        (("inspector2", "get_configuration", {}), None, "2026-06-16"),
    ],
)
def test_the_first_day_on_which_nobody_watches(
    stubbed: Stubbed, configuration: Any, pulled: int | None, day: str | None
) -> None:
    detail: dict[str, Any] = {"imagePushedAt": PUSHED}
    if pulled is not None:
        detail["lastRecordedPullTime"] = PUSHED + timedelta(days=pulled)
    found = watch.look(stubbed(scanning(), images(detail), configuration), "team/demo", [IMAGE])
    assert {each.unwatched_from.isoformat() for each in found.values()} == ({day} if day else set())
    for each in found.values():
        assert "rescanDuration=LIFETIME" in each.advice


def test_what_scans_and_does_not_watch(stubbed: Stubbed) -> None:
    """Basic scanning looks when somebody asks; a rule that scans on push never looks again."""
    assert watch.look(stubbed(scanning({"scanType": "BASIC"})), "team/demo", [IMAGE]) == {}
    on_push = json.loads(json.dumps(ENHANCED).replace("CONTINUOUS_SCAN", "SCAN_ON_PUSH"))
    for configuration in (on_push, {"scanType": "ENHANCED", "rules": []}):
        ecr = stubbed(scanning(configuration), images({"imagePushedAt": PUSHED}))
        (found,) = watch.look(ecr, "team/demo", [IMAGE]).values()
        assert found.unwatched_from == date(2026, 6, 1)
        assert "ecr apply --registry-scanning" in found.advice


def test_an_image_that_is_gone_does_not_hide_the_others(stubbed: Stubbed) -> None:
    gone = ("ecr", "describe_images", "ImageNotFoundException")
    ecr = stubbed(scanning(), gone, gone, images({"imagePushedAt": PUSHED}), set_to())
    assert list(watch.look(ecr, "team/demo", [OTHER, IMAGE])) == [IMAGE]


@pytest.mark.parametrize(
    "configuration", [set_to(), ("inspector2", "get_configuration", "AccessDeniedException")]
)
def test_words_that_are_new_and_refusals(stubbed: Stubbed, configuration: Any) -> None:
    if isinstance(configuration[2], dict):
        configuration[2]["ecrConfiguration"]["rescanDurationState"]["rescanDuration"] = "FOREVER"
    ecr = stubbed(scanning(), images({"imagePushedAt": PUSHED}), configuration)
    with pytest.raises(RegistryError) as reported:
        watch.look(ecr, "team/demo", [IMAGE])
    assert "FOREVER" in reported.value.message or "inspector2:GetConfiguration" in reported.value.hint


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """images.yaml with an ECR registry, and a store with demo:v1.0, made from `IMAGE`."""
    store = new_store(tmp_path / "store")
    content = tmp_path / "content"
    content.write_bytes(b"v1.0")
    record = dataclasses.replace(
        record_for(b"v1.0", "v1.0"), source={"repository": f"{HOST}/team/demo", "digest": str(IMAGE)}
    )
    store.publish(record, content)
    path = tmp_path / "images.yaml"
    path.write_text(
        "version: 1\n"
        'registry: {ecr: {account: "123456789012", region: us-east-1, prefix: team, scanning: enhanced}}\n'
        f"store: {{root: {store.root}}}\nimages: {{demo: {{base: 'a:1', scan: {{scanner: ecr}}}}}}\n"
    )
    return path


def long_ago(days: int) -> dict[str, Any]:
    return {"imagePushedAt": datetime.now(timezone.utc) - timedelta(days=days)}


@pytest.mark.parametrize(
    ("days", "pushed", "status", "says"),
    [
        (20, "DAYS_14", "warn", "nobody watches demo:v1.0 since"),
        (5, "DAYS_14", "warn", "nobody watches demo:v1.0 from"),
        (5, "DAYS_180", "ok", "nobody watches demo:v1.0 from"),
        (5, "LIFETIME", "ok", "no day on which it ends"),
    ],
)
def test_doctor(stubbed: Stubbed, config: Path, days: int, pushed: str, status: str, says: str) -> None:
    stubbed(scanning(), images(long_ago(days)), set_to(pushed))
    found = doctor._watched(load(config))
    assert (found.status, says in found.found) == (status, True), found
    assert ("LIFETIME" in found.advice) is (pushed != "LIFETIME")


def test_doctor_does_not_say_that_all_is_well_when_it_cannot_ask(stubbed: Stubbed, config: Path) -> None:
    stubbed(("ecr", "get_registry_scanning_configuration", "AccessDeniedException"))
    found = doctor._watched(load(config))
    assert found.status == "warn"
    assert "ecr:GetRegistryScanningConfiguration" in found.advice


def test_plan_names_the_day_of_the_newest_release(stubbed: Stubbed, config: Path) -> None:
    stubbed(scanning(), images(long_ago(5)), set_to())
    settings = load(config)
    with known_releases(settings) as known:
        ((release, found),) = _watches(settings, settings.select(()), known)
    assert found.unwatched_from == datetime.now(timezone.utc).date() + timedelta(days=10)
    assert found.as_json(release)["release"] == "demo:v1.0"


def test_rescan_names_the_day(stubbed: Stubbed, config: Path) -> None:
    expired = {"imageScanStatus": {"status": "SCAN_ELIGIBILITY_EXPIRED"}}
    asked = ("ecr", "describe_image_scan_findings", expired)
    for words in ([], ["--json"]):
        stubbed(asked, asked, scanning(), images(long_ago(20)), set_to())
        done = CliRunner().invoke(app, ["store", "rescan", "--config", str(config), *words])
        assert done.exit_code == 0, done.output
        day = f"{datetime.now(timezone.utc) - timedelta(days=5):%Y-%m-%d}"
        if words:
            assert json.loads(done.stdout)[0]["unwatched_from"] == day
        else:
            assert f"nobody watches demo:v1.0 since {day}: Inspector watches" in done.stdout


def test_a_registry_that_is_not_ecr_is_not_asked(tmp_path: Path, stubbed: Stubbed) -> None:
    store = Store(tmp_path / "store")
    stubbed()
    store.create()
    record = record_for(b"x", "v1")
    release = store.publish(record, _file(tmp_path))
    assert watch.of_releases([release]) == []


def _file(folder: Path) -> Path:
    path = folder / "x"
    path.write_bytes(b"x")
    return path
