"""What ECR says about a scan, read as one of three: a complete result, wait, or nothing will come.

Source: the ECR API reference, DescribeImageScanFindings and ImageScanStatus. The keys of a result show the
kind of scan, since enhanced scanning also says COMPLETE, and says ACTIVE before there is anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from pipeline.errors import FormatError
from pipeline.oci.digest import Digest
from pipeline.scan.findings import Finding, ScanResult, parse_severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """No result yet, one may come."""

    state: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Waiting will bring no result. The image is then *unknown*, never clean."""

    state: str
    why: str
    hint: str


_TRIVY = "scan: {scanner: trivy} scans it without ECR"
_ENDED = {
    "FAILED": ("ECR could not scan it", "start it again (aws ecr start-image-scan), or " + _TRIVY),
    "UNSUPPORTED_IMAGE": ("ECR does not know its operating system or media type", _TRIVY),
    "SCAN_ELIGIBILITY_EXPIRED": (
        "Amazon Inspector no longer watches it: it was pushed long ago, and a .sqsh does not count as use",
        "set Inspector's rescanDuration to LIFETIME (aws inspector2 update-configuration), or " + _TRIVY,
    ),
    "FINDINGS_UNAVAILABLE": ("ECR has no findings for it", "check that Amazon Inspector is on, or " + _TRIVY),
    "LIMIT_EXCEEDED": ("the account has no scans left today", "try again tomorrow, or " + _TRIVY),
    "IMAGE_ARCHIVED": (
        "it lies in ECR's archive, where nothing is scanned",
        "bring it back from the archive",
    ),
    "IMAGE_SIZE_EXCEEDED": ("it is larger than ECR scans", _TRIVY),
}
_WAITING = {
    "": "ECR has no scan of it yet",
    "PENDING": "the scan is queued",
    "IN_PROGRESS": "the scan is running",
}
_DONE = ("COMPLETE", "ACTIVE")


def read(pages: Sequence[Mapping[str, Any]]) -> ScanResult | Pending | Ended:
    """Read all pages of DescribeImageScanFindings for one digest; no page means ScanNotFoundException.

    Only a result that says when it was completed, counts its findings, and lists as many as it counts, is
    one. A state that is not known is waited for and never passes. Raises FormatError for what cannot be read
    at all.
    """
    if not pages:
        return Pending(state="", why=_WAITING[""])
    for page in pages:  # a scan may begin again, or end, while its pages are read
        unfinished = _unfinished(page)
        if unfinished is not None:
            return unfinished
    state = _state(pages[0])
    summary = pages[0].get("imageScanFindings") or {}
    completed, counts = summary.get("imageScanCompletedAt"), summary.get("findingSeverityCounts")
    if completed is None or counts is None:
        return Pending(state=state, why=f"ECR says {state} but has no complete result yet")
    findings, listed, kind = _findings(pages)
    counted = sum(int(number) for number in counts.values())
    if listed < counted:
        return Pending(state=state, why=f"ECR counts {counted} findings but lists {listed}")
    return ScanResult(scanner=f"ecr {kind}", findings=tuple(findings), completed_at=_time(completed))


def _state(page: Mapping[str, Any]) -> str:
    return str((page.get("imageScanStatus") or {}).get("status", ""))


def _unfinished(page: Mapping[str, Any]) -> Pending | Ended | None:
    """Why this page belongs to no complete result; None when its state says that it may."""
    state = _state(page)
    said = str((page.get("imageScanStatus") or {}).get("description", ""))
    if state in _ENDED:
        why, hint = _ENDED[state]
        return Ended(state=state, why=f"{why}: {said}" if said else why, hint=hint)
    if state not in _DONE:
        return Pending(state=state, why=_WAITING.get(state, f"ECR says {state!r}, which is not known here"))
    return None


def _findings(
    pages: Sequence[Mapping[str, Any]],
) -> tuple[list[Finding], int, Literal["basic", "enhanced"]]:
    """The findings, how many ECR has listed (one of Inspector's may be in several packages), and the kind."""
    found: list[Finding] = []
    listed = 0
    try:
        enhanced = any("enhancedFindings" in (page.get("imageScanFindings") or {}) for page in pages)
        for page in pages:
            part = page.get("imageScanFindings") or {}
            for raw in part.get("findings") or ():
                listed += 1
                found.append(_basic(raw))
            for raw in part.get("enhancedFindings") or ():
                if raw.get("status") != "CLOSED":
                    listed += 1
                    found.extend(_enhanced(raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"ECR's findings cannot be read: {type(error).__name__} {error}") from error
    return found, listed, "enhanced" if enhanced else "basic"


def _basic(raw: Mapping[str, Any]) -> Finding:
    attributes = {str(one["key"]): str(one.get("value", "")) for one in raw.get("attributes") or ()}
    fixed_in = next((attributes[key] for key in _FIXED_KEYS if attributes.get(key)), "")
    return Finding(
        id=str(raw["name"]),
        severity=parse_severity(str(raw.get("severity", ""))),
        package=attributes.get("package_name", ""),
        version=attributes.get("package_version", ""),
        fix="yes" if fixed_in else "unknown",
        fixed_in=fixed_in,
        title=_line(raw.get("description")),
        url=str(raw.get("uri", "")),
    )


_FIXED_KEYS = ("fixed_version", "fixed_in_version", "patched_version", "patched_versions")
_FIX: Mapping[str, Literal["yes", "no", "unknown"]] = {"YES": "yes", "PARTIAL": "yes", "NO": "no"}


def _enhanced(raw: Mapping[str, Any]) -> list[Finding]:
    """One finding for each package that Inspector names in it."""
    details = raw.get("packageVulnerabilityDetails") or {}
    packages = details.get("vulnerablePackages") or [{}]
    return [
        Finding(
            id=str(details.get("vulnerabilityId") or raw["title"]),
            severity=parse_severity(str(raw.get("severity", ""))),
            package=str(package.get("name", "")),
            version=_version(package),
            fix=_FIX.get(str(raw.get("fixAvailable", "")), "unknown"),
            fixed_in=str(package.get("fixedInVersion") or "").replace("NotAvailable", ""),
            title=_line(raw.get("title") or raw.get("description")),
            url=str(details.get("sourceUrl", "")),
            layer=_layer(package.get("sourceLayerHash")),
        )
        for package in packages
    ]


def _version(package: Mapping[str, Any]) -> str:
    version = "-".join(str(package[key]) for key in ("version", "release") if package.get(key))
    return f"{package['epoch']}:{version}" if package.get("epoch") else version


def _layer(value: object) -> Digest | None:
    try:
        return Digest.parse(str(value)) if value else None
    except FormatError:
        return None


def _line(value: object) -> str:
    text = " ".join(str(value or "").split())
    return text if len(text) <= 160 else text[:159] + "…"


def _time(value: object) -> datetime:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc)
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, timezone.utc)
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).astimezone(timezone.utc)
    except ValueError as error:
        raise FormatError(f"ECR gives {value!r} as the time of a scan") from error
