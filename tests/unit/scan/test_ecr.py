"""The gate's patience: every state in every order, late findings, throttling, and no pass without a
result."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.errors import RegistryError, ScanRejected
from pipeline.oci.digest import Digest
from pipeline.scan.ecr import Waiting, wait
from pipeline.scan.findings import ScanResult
from tests.support.servers.scans import DONE, basic_finding, complete, enhanced_finding, state

DIGEST = Digest.of(b"image")
CLEAN = complete([])
WAITED_FOR = ["IN_PROGRESS", "PENDING", "COMPLETE", "ACTIVE", "SOMETHING_NEW"]
ENDS = [
    "FAILED",
    "UNSUPPORTED_IMAGE",
    "SCAN_ELIGIBILITY_EXPIRED",
    "FINDINGS_UNAVAILABLE",
    "LIMIT_EXCEEDED",
    "IMAGE_ARCHIVED",
    "IMAGE_SIZE_EXCEEDED",
]


def refused(code: str) -> AwsRefused:
    return AwsRefused(code, hint="", code=code, operation="X")


class Script(Ecr):
    """Plays answers one after the other, the last for ever, on a clock that waiting turns."""

    def __init__(self, *answers: dict[str, Any] | Exception, start: Exception | None = None) -> None:
        super().__init__("123456789012", "us-east-1")
        self.answers = list(answers)
        self.start = start
        self.started = 0
        self.asked = 0
        self.now = 0.0
        self.pauses: list[float] = []

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        assert parameters["imageId"] == {"imageDigest": str(DIGEST)}, "asked by digest, never by tag"
        if operation == "start_image_scan":
            self.started += 1
            if self.start is not None:
                raise self.start
            return {}
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def run(
    script: Script, *, max_age: timedelta = timedelta(days=1), timeout: timedelta = timedelta(minutes=30)
) -> ScanResult:
    waiting = Waiting(sleep=script.sleep, clock=lambda: script.now)
    return wait(
        script,
        "team/demo",
        DIGEST,
        timeout=timeout,
        max_age=max_age,
        waiting=waiting,
        now=DONE + timedelta(hours=1),
    )


@pytest.mark.parametrize("order", list(itertools.permutations(WAITED_FOR, 3)))
def test_states_may_come_in_any_order_before_the_result(order: tuple[str, ...]) -> None:
    script = Script(refused("ScanNotFoundException"), *(state(name) for name in order), CLEAN)
    assert run(script).findings == ()
    assert script.asked == 5


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "before", [list(order) for length in (0, 1, 2) for order in itertools.permutations(WAITED_FOR, length)]
)
def test_an_end_without_a_result_is_never_a_pass(end: str, before: list[str]) -> None:
    script = Script(*(state(name) for name in before), state(end), CLEAN)
    with pytest.raises(ScanRejected, match=end) as caught:
        run(script)
    assert caught.value.hint
    assert script.asked == len(before) + 1


@pytest.mark.parametrize("name", WAITED_FOR)
def test_a_state_that_never_changes_ends_at_the_limit(name: str) -> None:
    script = Script(state(name))
    with pytest.raises(ScanRejected, match="no complete scan after 30 minutes"):
        run(script)
    assert script.now == pytest.approx(1800, abs=1)
    assert script.asked < 50
    growing = script.pauses[:8]
    assert growing == sorted(growing)
    assert growing[0] < growing[-1] <= 60


@pytest.mark.parametrize("before", ["COMPLETE", "ACTIVE"])
@pytest.mark.parametrize("after", ["PENDING", "IN_PROGRESS", *ENDS])
def test_a_state_after_one_that_looked_done_counts(before: str, after: str) -> None:
    """COMPLETE or ACTIVE without a result, then anything else, and a result with a finding at last."""
    script = Script(state(before), state(after), complete([basic_finding("CVE-1", "a")]))
    if after in ENDS:
        with pytest.raises(ScanRejected, match=after):
            run(script)
    else:
        assert [one.id for one in run(script).findings] == ["CVE-1"]


def test_a_second_page_that_is_late_or_of_another_scan_is_waited_for() -> None:
    findings = [basic_finding(f"CVE-{n}", "a") for n in range(2)]
    whole = complete(findings)

    def page(*shown: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**whole, "imageScanFindings": {**whole["imageScanFindings"], "findings": list(shown)}, **more}

    first = page(findings[0], nextToken="1")
    missing, restarted = page(), {**page(findings[1]), **state("PENDING")}
    script = Script(first, missing, first, restarted, first, page(findings[1]))
    assert [one.id for one in run(script).findings] == ["CVE-0", "CVE-1"]
    assert script.asked == 6
    endless = (page(nextToken=str(n)) for n in itertools.count())
    script = Script(whole)
    script.call = lambda *_, **__: next(endless)  # type: ignore[method-assign,misc,assignment]
    with pytest.raises(ScanRejected, match="more than 1000 pages"):
        run(script, timeout=timedelta(seconds=0))


def test_a_page_that_is_throttled_is_asked_for_again_with_all_others() -> None:
    whole = complete([basic_finding("CVE-1", "a")])
    first = {**whole, "nextToken": "1"}
    empty = {**whole, "imageScanFindings": {**whole["imageScanFindings"], "findings": []}}
    script = Script(first, refused("ThrottlingException"), first, empty)
    assert [one.id for one in run(script).findings] == ["CVE-1"]
    assert script.started == 0


def test_findings_that_come_late_are_seen() -> None:
    empty = complete([], status="ACTIVE", completed=None)
    counted = complete([enhanced_finding("CVE-1", "a")], status="ACTIVE")
    early = {**counted, "imageScanFindings": {**counted["imageScanFindings"], "enhancedFindings": []}}
    result = run(Script(state("ACTIVE"), empty, early, counted))
    assert [one.id for one in result.findings] == ["CVE-1"]


def test_a_scan_that_nobody_started_is_asked_for_once() -> None:
    script = Script(*[refused("ScanNotFoundException")] * 8, state("IN_PROGRESS"), CLEAN)
    assert run(script).findings == ()
    assert script.started == 1
    for code in ("LimitExceededException", "ValidationException", "UnsupportedImageTypeException"):
        script = Script(*[refused("ScanNotFoundException")] * 12, CLEAN, start=refused(code))
        assert run(script).findings == ()
        assert script.started == 1


def test_throttling_is_waited_out() -> None:
    script = Script(
        refused("ThrottlingException"), state("IN_PROGRESS"), refused("ThrottlingException"), CLEAN
    )
    assert run(script).findings == ()


@pytest.mark.parametrize(
    "code", ["AccessDeniedException", "RepositoryNotFoundException", "ImageNotFoundException"]
)
def test_a_refusal_ends_it(code: str) -> None:
    with pytest.raises(RegistryError, match=code):
        run(Script(refused(code), CLEAN))


def test_an_old_basic_result_is_made_anew_where_ecr_does_that() -> None:
    old = complete([], completed=DONE - timedelta(days=3))
    fresh = complete([basic_finding("CVE-1", "a")], completed=DONE)
    script = Script(old, old, state("IN_PROGRESS"), fresh)
    assert [one.id for one in run(script).findings] == ["CVE-1"]
    assert script.started == 1
    with pytest.raises(ScanRejected, match="a newer scan is running"):
        run(Script(old))  # it was asked for, and never came
    refusing = Script(old, start=refused("LimitExceededException"))
    assert run(refusing).completed_at == DONE - timedelta(days=3)
    enhanced = Script(complete([enhanced_finding("CVE-1", "a")], completed=DONE - timedelta(days=3)))
    run(enhanced)
    assert enhanced.started == 0, "enhanced scanning runs by itself"


def test_all_pages_belong_to_the_result() -> None:
    findings = [basic_finding(f"CVE-{n}", "a") for n in range(3)]
    whole = complete(findings)
    pages: list[dict[str, Any]] = []
    for number, one in enumerate(findings):
        page = {**whole, "imageScanFindings": {**whole["imageScanFindings"], "findings": [one]}}
        pages.append(page if number == 2 else {**page, "nextToken": str(number)})
    assert len(run(Script(*pages)).findings) == 3
