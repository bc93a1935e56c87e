"""The gate between the registry and the cluster: nothing is converted without a `ScanReport`.

It fails closed: it passes on a complete result that the policy accepts, and on nothing else. Only
`scanner: none` goes without a scan, and the release's record says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.types import Config, ScanPolicy
from pipeline.errors import ScanRejected
from pipeline.image.push import PushedImage
from pipeline.scan.judge import Judge, subject_of
from pipeline.scan.policy import Verdict

_NAMED = 5  # findings that the sentence of a rejection names


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What is known about the findings of one image, by digest.

    `unscanned` is a decision of the policy, not a result; the release's record has it.
    """

    image: PushedImage
    scanner: str
    status: Literal["unscanned", "passed"]
    verdict: Verdict | None = None

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        if self.verdict is None:
            return "nothing was scanned, as the policy says (scanner: none); the record says so too"
        counts = ", ".join(f"{number} {name}" for name, number in self.verdict.counts.items())
        waived = sum(one.decision == "waived" for one in self.verdict.judged)
        return f"passed ({self.scanner}): {counts or 'no findings'}" + (
            f", {waived} waived" if waived else ""
        )

    def record(self) -> dict[str, Any]:
        """The scan as the release record holds it: counts and waivers; all findings lie beside the record."""
        entry: dict[str, Any] = {"status": self.status, "scanner": self.scanner}
        if self.verdict is not None:
            whole = self.verdict.as_json()
            entry |= {"completed_at": whole["completed_at"], "findings": whole["counts"]}
            entry["waived"] = [
                {"id": one["id"], "package": one["package"], **one["waiver"]}
                for one in whole["findings"]
                if one["decision"] == "waived"
            ]
            entry["warnings"] = whole["warnings"]
        return entry


class Blocked(ScanRejected):
    """The result is complete and findings block; `verdict` has them all."""

    def __init__(self, message: str, *, hint: str, verdict: Verdict) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


def scan(
    pushed: PushedImage, policy: ScanPolicy, *, image: str, config: Config | None, judge: Judge
) -> ScanReport:
    """Scan a pushed image by digest and apply the policy.

    `image` is its name in images.yaml, which waivers use. Raises Blocked when findings block, ScanRejected
    when there is no complete result in time, ConfigError when the policy names a scanner that this registry
    does not have.
    """
    subject = subject_of(
        config, image, pushed.reference, str(pushed.base.platform), pushed.base.reference, pushed.base.digest
    )
    verdict = judge.judge(subject, policy)
    if verdict is None:
        return ScanReport(image=pushed, scanner="none", status="unscanned")
    if not verdict.passed:
        raise blocked(verdict, image)
    return ScanReport(image=pushed, scanner=verdict.scanner, status="passed", verdict=verdict)


def blocked(verdict: Verdict, image: str) -> Blocked:
    """The rejection, with its worst findings by name."""
    worst = [
        f"{one.finding.id} ({one.finding.severity}) in {one.finding.package}" for one in verdict.blocking
    ]
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    return Blocked(
        f"{image}: {len(worst)} findings block: {', '.join(worst[:_NAMED])}{more}",
        hint=f"update the packages, or waive them for a time in waivers.yaml; see sqshpipe scan {image}",
        verdict=verdict,
    )
