"""`sqshpipe release` as a person runs it, from a Dockerfile on nvcr.io's base by ECR to a published .sqsh.

Repository made, pushed by a real engine, scanned, blocked by a finding, passed with a waiver, blocked again
after its end, looked at again; under the least permissions, and with every secret searched for everywhere.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from demo.base import push_base
from pipeline.aws.ecr_policies import Role, policy
from pipeline.docker.engine import Engine
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from pipeline.store.store import Store
from tests.support.servers import aws, scans
from tests.support.servers.ecr_front import HOST
from tests.support.servers.real_names import NGC, Watched, World, installed, world
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs(
    "dockerd", "docker-registry", "htpasswd", "mksquashfs", "unsquashfs", "unshare", "root"
)

BASE = f"{NGC}/nvidia/pytorch:24.01-py3"
CONFIG = """\
version: 1
registry:
  ecr: {{account: "{account}", region: {region}, prefix: team}}
store: {{root: {folder}/store}}
defaults:
  scan: {{waivers: waivers.yaml, published: {published}}}
images:
  train:
    base: {base}
    dockerfile: dockerfiles/train/Dockerfile
    build_args: {{GREETING: good morning}}
  base:
    base: {base}
"""
DOCKERFILE = f"FROM {BASE}\nARG GREETING\nCOPY train.py /opt/train.py\nRUN echo $GREETING > /etc/greeting\n"
WAIVERS = "version: 1\nwaivers:\n- {{id: CVE-1, package: openssl, reason: not reachable here, until: {}}}\n"
RECENTLY = datetime.now(timezone.utc)
FOUND = scans.complete([scans.basic_finding("CVE-1", "openssl", "CRITICAL")], completed=RECENTLY)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        project = tmp_path / "project"
        (project / "dockerfiles" / "train").mkdir(parents=True)
        (project / "dockerfiles" / "train" / "Dockerfile").write_text(DOCKERFILE)
        (project / "dockerfiles" / "train" / "train.py").write_text("print('step 1')\n")
        (project / "waivers.yaml").write_text("version: 1\nwaivers: []\n")
        configure(made)
        with Engine.connect(made.engine.host) as connected:
            held = Credentials(username=made.ngc.username, password=made.ngc.password)
            push_base(connected, Reference.parse(BASE), held)
        yield made


def configure(there: World, published: str = "report") -> None:
    new_store(there.folder / "store")
    text = CONFIG.format(
        account=aws.ACCOUNT, region=aws.REGION, folder=there.folder, base=BASE, published=published
    )
    (there.folder / "project" / "images.yaml").write_text(text)


def waive(there: World, until: str) -> None:
    (there.folder / "project" / "waivers.yaml").write_text(WAIVERS.format(until))


def granted(role: Role) -> set[str]:
    """The actions of ``sqshpipe ecr policy ROLE``."""
    statements = policy(role, account=aws.ACCOUNT, region=aws.REGION, prefix="team")["Statement"]
    return {action.partition(":")[2] for one in statements for action in one["Action"]}


def tags(there: World, name: str = "team/train") -> dict[str, str]:
    """Tag to digest, as ECR's control plane knows them."""
    status, body = there.ecr.ask_moto("ListImages", json.dumps({"repositoryName": name}).encode())
    assert status == 200, body
    return {one["imageTag"]: one["imageDigest"] for one in json.loads(body)["imageIds"] if "imageTag" in one}


def state(there: World, version: str) -> str:
    release = Store(there.folder / "store").release("train", version)
    assert release is not None
    return release.state


def record(there: World, version: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((there.folder / f"store/train/{version}.json").read_text())
    return value


@pytest.mark.timeout(900)  # a dozen programs one after the other: seconds each, but not on a busy machine
def test_from_a_dockerfile_through_the_gate_to_a_published_file_and_back(there: World) -> None:
    ecr = there.ecr
    ecr.granted = granted("builder")
    ecr.every = [scans.state("IN_PROGRESS"), scans.state("COMPLETE"), FOUND]
    with Watched() as watched:
        planned = json.loads(there.run("plan", "train", "--json", check=10).stdout)
        assert [(one["setting"], one["found"]) for one in planned["repositories"]] == [
            ("repository", "missing")
        ]

        # blocked by a finding: made, pushed, scanned, and nothing else
        blocked = there.run("-v", "release", "train", "--tag", "v1.0", check=5)
        assert "CVE-1 (critical) in openssl" in blocked.stderr
        repository = ecr.repository("team/train")
        assert repository is not None
        assert repository["imageTagMutability"] == "IMMUTABLE"
        (key,) = tags(there)
        assert key.startswith("key-")
        assert not (there.folder / "store/train").exists()

        # passed with a waiver: adopted, converted, published, attested
        waive(there, "2099-12-31")
        sent = ecr.count("PATCH", "/blobs/")
        done = there.run("-v", "--log-format", "json", "release", "train", "--tag", "v1.0", "--json")
        answer = json.loads(done.stdout)
        assert Path(answer["path"]) == there.folder / "store/train/v1.0.sqsh"
        published(there, answer)
        assert ecr.count("PATCH", f"/{key}") == 0
        assert ecr.count("PATCH", "/blobs/") <= sent + 6, "what was pushed is not pushed again"
        assert tags(there) == {key: tags(there)[key], "v1.0": tags(there)[key]}
        assert "nothing changed" in there.run("release", "train", "--tag", "v1.0").stderr

        # blocked again after the waiver's end
        waive(there, "2026-01-01")
        ended = there.run("release", "train", "--tag", "v1.1", check=5)
        assert "the waiver of CVE-1 in openssl ended on 2026-01-01" in ended.stderr
        assert "v1.1" not in tags(there)
        assert not (there.folder / "store/train/v1.1.json").exists()
        looked_again(there)
        mirrored(there)
        drifted(there)
    assert_no_secret_anywhere(there, watched)


def published(there: World, answer: dict[str, Any]) -> None:
    """The record, the bytes, the provenance beside it and in the registry."""
    path, store = Path(answer["path"]), there.folder / "store"
    listing = subprocess.run(["unsquashfs", "-cat", path, "etc/greeting"], capture_output=True, text=True)
    assert listing.stdout == "good morning\n"
    made = record(there, "v1.0")
    digest = next(iter(tags(there).values()))
    assert made["source"]["repository"] == f"{HOST}/team/train"
    assert made["source"]["digest"] == digest
    assert made["scan"]["status"] == "passed"
    assert made["scan"]["scanner"] == "ecr basic"
    assert made["scan"]["findings"] == {"critical": 1}
    assert [(one["id"], one["until"]) for one in made["scan"]["waived"]] == [("CVE-1", "2099-12-31")]
    folder = store / "train/.meta/v1.0"
    (statement_path,) = folder.rglob("provenance.intoto.json")
    statement = json.loads(statement_path.read_text())
    assert statement["subject"][0]["digest"] == {"sha256": made["sha256"]}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["buildArgs"] == {"GREETING": "good morning"}
    assert definition["internalParameters"]["scan"] == made["scan"]
    assert definition["internalParameters"]["converter"]["versions"]
    found = {one["name"]: one["digest"] for one in definition["resolvedDependencies"]}
    assert {"base", "image", "Dockerfile"} <= found.keys()
    assert found["image"] == {"sha256": digest.partition(":")[2]}
    types = [one["artifactType"] for one in there.ecr.attached["team/train", digest]]
    wanted = ["application/vnd.in-toto+json"]
    if any(installed(tool, there.environment["PATH"]) for tool in ("syft", "trivy")):
        wanted.append("application/vnd.cyclonedx+json")
        (sbom,) = folder.rglob("sbom.cdx.json")
        assert json.loads(sbom.read_text())["bomFormat"] == "CycloneDX"
    assert sorted(types) == sorted(wanted)
    (signature,) = folder.rglob("signature.json")
    assert json.loads(signature.read_text())["status"] == "unsigned"


def looked_again(there: World) -> None:
    """What has become unacceptable is reported, then yanked where the policy says so."""
    there.ecr.granted = granted("scanner")
    there.ecr.used.clear()
    reported = there.run("store", "rescan", check=5)
    assert "train:v1.0  linux/amd64  unacceptable" in reported.stdout
    assert state(there, "v1.0") == "published"
    configure(there, "yank")
    assert "train:v1.0  linux/amd64  yanked" in there.run("store", "rescan", check=5).stdout
    assert state(there, "v1.0") == "yanked"
    assert "DescribeImageScanFindings" in there.ecr.used


def mirrored(there: World) -> None:
    """An entry without a Dockerfile: the base as it is, by the same gate, without an engine."""
    there.ecr.granted = granted("builder")
    there.ecr.every = [scans.complete([], completed=RECENTLY)]
    there.ecr.scans.clear()
    no_engine = "unix:///nowhere.sock"
    done = json.loads(there.run("release", "base", "--tag", "24.01", "--json", DOCKER_HOST=no_engine).stdout)
    assert done["source"]["digest"] == done["base"]["digest"]
    assert tags(there, "team/base")["24.01"] == done["base"]["digest"]


def drifted(there: World) -> None:
    """The repository differs from images.yaml: plan reports it, ecr apply fixes it, plan reports nothing."""
    change = {"repositoryName": "team/train", "imageTagMutability": "MUTABLE"}
    there.ecr.ask_moto("PutImageTagMutability", json.dumps(change).encode())
    there.ecr.ask_moto("DeleteLifecyclePolicy", json.dumps({"repositoryName": "team/train"}).encode())
    plan = ("plan", "train", "base", "--json")
    reported = json.loads(there.run(*plan).stdout)["repositories"]
    assert [(one["setting"], one["found"]) for one in reported] == [
        ("tags", "MUTABLE"),
        ("lifecycle", "none"),
    ]
    there.ecr.granted = granted("owner")
    assert "team/train  tags: MUTABLE -> IMMUTABLE" in there.run("ecr", "apply").stdout
    there.ecr.granted = granted("builder")
    assert json.loads(there.run(*plan).stdout)["repositories"] == []


def assert_no_secret_anywhere(there: World, watched: Watched) -> None:
    """No secret in what was printed and logged, in any file, on any command line, in the registry."""
    secrets = there.secrets()
    assert len(secrets) >= 5, "passwords, their base64, NGC's key, AWS's key, tokens"
    assert any(b"pipeline" in line for line in watched.seen)
    assert any(b"mksquashfs" in line or b"unshare" in line for line in watched.seen)
    said = "\n".join(there.said).encode()
    command_lines = b"\n".join(watched.seen)
    files = [
        path
        for folder in (there.folder, there.ecr.folder)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert len(files) > 20
    for secret in (one.encode() for one in secrets):
        assert secret not in said
        assert secret not in command_lines
    for path in files:
        content = path.read_bytes()
        assert not [1 for secret in secrets if secret.encode() in content], path
