"""One verdict for one digest and one policy, whoever asks: the gate of a release or check, and a rescan."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.config.types import Config, EcrSettings, ImageSpec, RegistrySettings, ScanPolicy, StoreSettings
from pipeline.errors import ScanRejected
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.scan.ecr import Waiting
from pipeline.scan.gate import scan
from pipeline.scan.judge import Judge
from pipeline.scan.rescan import rescan
from pipeline.store.record import Record
from pipeline.store.store import Store
from tests.support.servers import scans
from tests.support.store.releases import new_store

NOW = datetime(2026, 6, 15, tzinfo=timezone.utc)
LINUX = Platform.parse("linux/amd64")
BASE = Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3")
BASE_DIGEST, IMAGE_DIGEST = Digest.of(b"base"), Digest.of(b"image")
POLICY = ScanPolicy(scanner="ecr", new_since_base=True, published="yank")
FROM_BASE = scans.basic_finding("CVE-1", "glibc", "CRITICAL")
OURS = scans.basic_finding("CVE-2", "openssl", "CRITICAL")


class Answers(Ecr):
    """ECR with basic scanning: findings by digest; what is not listed is not there."""

    def __init__(self, answers: dict[Digest, dict[str, Any]]) -> None:
        super().__init__("123456789012", "us-east-1")
        self.answers = {str(digest): answer for digest, answer in answers.items()}

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        digest = parameters["imageId"]["imageDigest"]
        if operation == "start_image_scan":
            return {}
        if digest not in self.answers:
            raise AwsRefused("no such image", hint="", code="ImageNotFoundException", operation=operation)
        return self.answers[digest]


def judge(answers: dict[Digest, dict[str, Any]]) -> Judge:
    ecr = Answers(answers)
    waiting = Waiting(sleep=lambda _: None, clock=iter(range(0, 10**6, 600)).__next__)
    return Judge(ecr_for=lambda _: ecr, waiting=waiting, now=NOW)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    specs = {
        "train": ImageSpec(
            name="train", base=BASE, platform=LINUX, dockerfile=tmp_path / "Dockerfile", scan=POLICY
        ),
        "pytorch": ImageSpec(name="pytorch", base=BASE, platform=LINUX, scan=POLICY),
    }
    return Config(
        path=tmp_path / "images.yaml",
        registry=RegistrySettings(ecr=EcrSettings(account="123456789012", region="us-east-1")),
        store=StoreSettings(configured=tmp_path / "store"),
        images=specs,
        cache=tmp_path,
        scratch=tmp_path,
    )


def release(config: Config, name: str, digest: Digest) -> Store:
    store = new_store(config.store.root)
    file = config.cache / f"{name}.sqsh"
    file.write_bytes(name.encode())
    record = Record(
        image=name,
        version="v1.0",
        platform="linux/amd64",
        sha256=Digest.of(file.read_bytes()).hex,
        size=file.stat().st_size,
        source={"repository": str(config.registry.repository(name)), "digest": str(digest)},
        base={"reference": str(BASE), "digest": str(BASE_DIGEST)},
        keys={},
        scan={"status": "passed", "scanner": "ecr basic"},
        created="2026-06-01T00:00:00Z",
    )
    store.publish(record, file)
    return store


def gate(config: Config, name: str, digest: Digest, answers: dict[Digest, dict[str, Any]]) -> str:
    base = BaseImage(reference=BASE, platform=LINUX, digest=BASE_DIGEST, index_digest=None, locked=True)
    pushed = PushedImage(
        repository=config.registry.repository(name),
        digest=digest,
        config_digest=Digest.of(b"config"),
        size=1,
        base=base,
        build_key=None,
        adopted=False,
    )
    try:
        return scan(pushed, POLICY, image=name, config=config, judge=judge(answers)).status
    except ScanRejected:
        return "rejected"


BASE_SCANNED = scans.complete([FROM_BASE], completed=NOW)
CASES = {
    "findings of the base alone": (
        {IMAGE_DIGEST: scans.complete([FROM_BASE], completed=NOW), BASE_DIGEST: BASE_SCANNED},
        "passed",
        "acceptable",
    ),
    "one of ours": (
        {IMAGE_DIGEST: scans.complete([FROM_BASE, OURS], completed=NOW), BASE_DIGEST: BASE_SCANNED},
        "rejected",
        "unacceptable",
    ),
    "the base cannot be read": (
        {IMAGE_DIGEST: scans.complete([FROM_BASE], completed=NOW)},
        "rejected",
        "unknown",
    ),
    "the scan of the base is not complete": (
        {IMAGE_DIGEST: scans.complete([FROM_BASE], completed=NOW), BASE_DIGEST: scans.state("IN_PROGRESS")},
        "rejected",
        "unknown",
    ),
    "nothing was found": ({IMAGE_DIGEST: scans.complete([], completed=NOW)}, "passed", "acceptable"),
}


@pytest.mark.parametrize("case", CASES)
def test_gate_and_rescan_give_one_verdict(config: Config, case: str) -> None:
    answers, at_the_gate, later = CASES[case]
    assert gate(config, "train", IMAGE_DIGEST, answers) == at_the_gate
    store = release(config, "train", IMAGE_DIGEST)
    (found,) = rescan(store, config, images=("train",), judge=judge(answers))
    assert (found.status, found.yanked) == (later, later == "unacceptable")
    state = store.release("train", "v1.0")
    assert state is not None
    assert state.state == ("yanked" if later == "unacceptable" else "published")


def test_the_mirrored_base_is_its_own_base(config: Config) -> None:
    answers = {BASE_DIGEST: BASE_SCANNED}
    assert gate(config, "pytorch", BASE_DIGEST, answers) == "passed"
    store = release(config, "pytorch", BASE_DIGEST)
    (found,) = rescan(store, config, images=("pytorch",), judge=judge(answers))
    assert (found.status, found.yanked) == ("acceptable", False)
