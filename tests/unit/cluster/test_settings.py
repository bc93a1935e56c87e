"""cluster.yaml: what it takes, what it refuses, and what is rendered from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.cluster import bootstrap, settings
from pipeline.errors import ConfigError

FULL = """
name: gpu-cluster
region: us-east-1
os: ubuntu2204
registries: [123456789012.dkr.ecr.us-east-1.amazonaws.com/containers]
scripts: s3://my-bucket/cluster
head: {instance: m5.2xlarge, subnet: subnet-0123456789abcdef0, ssh_key: key}
gpu: {instance: p4d.24xlarge, subnet: subnet-0123456789abcdef1, max: 8}
lustre: {gib: 4800, throughput: 250}
openzfs: {volume: fsvol-0123456789abcdef0}
"""


def load(tmp_path: Path, text: str) -> settings.ClusterSettings:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return settings.load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nam: x", "nam"),
        ("name: [", "not YAML"),
        ("store: relative", "store"),
        ("store: /fsx/$(rm -rf /)", "store"),
        ("os: centos7", "os"),
        ("registries: ['https://x/y']", "without https"),
        ("lustre: {gib: 3000}", "multiple of 2400"),
        ("jobs: {env: {NCCL_DEBUG: 'a; rm -rf /'}}", "NCCL_DEBUG"),
        ("jobs: {mounts: ['/x;y']}", "mounts"),
        ("software: {pyxis: {version: '1', url: 'http://x/y', sha256: abc}}", "url"),
        ("gpu: {subnet: x, capacity_reservation: nope}", "capacity_reservation"),
    ],
)
def test_a_bad_value_is_told_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert says in refused.value.message
    assert "cluster.yaml" in refused.value.message


def test_the_cluster_file_has_what_the_nodes_need(tmp_path: Path) -> None:
    rendered = yaml.safe_load(bootstrap.cluster_file(load(tmp_path, FULL)))
    (queue,) = rendered["Scheduling"]["SlurmQueues"]
    assert queue["ComputeResources"][0]["Efa"] == {"Enabled": True}
    assert queue["Networking"]["PlacementGroup"] == {"Enabled": True}
    assert rendered["Scheduling"]["SlurmSettings"]["ScaledownIdletime"] == 10
    assert queue["CustomActions"]["OnNodeConfigured"]["Script"] == "s3://my-bucket/cluster/bootstrap.sh"
    storage = {each["StorageType"]: each for each in rendered["SharedStorage"]}
    assert storage["FsxLustre"]["FsxLustreSettings"]["PerUnitStorageThroughput"] == 250
    assert storage["FsxOpenZfs"]["FsxOpenZfsSettings"] == {"VolumeId": "fsvol-0123456789abcdef0"}
    for access in (rendered["HeadNode"]["Iam"]["S3Access"], queue["Iam"]["S3Access"]):
        assert access == [{"BucketName": "my-bucket", "KeyName": "cluster/*", "EnableWriteAccess": False}]


def test_a_capacity_reservation_brings_its_own_placement(tmp_path: Path) -> None:
    text = FULL.replace("max: 8", "max: 8, capacity_reservation: cr-0123456789abcdef0")
    rendered = yaml.safe_load(bootstrap.cluster_file(load(tmp_path, text)))
    (queue,) = rendered["Scheduling"]["SlurmQueues"]
    assert queue["CapacityReservationTarget"] == {"CapacityReservationId": "cr-0123456789abcdef0"}
    assert queue["Networking"]["PlacementGroup"] == {"Enabled": False}


def test_a_cluster_file_needs_its_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no head"):
        bootstrap.cluster_file(load(tmp_path, "name: x"))


@pytest.mark.parametrize("credentials", ["substitution", "timer", "none"])
def test_no_token_is_in_the_script(tmp_path: Path, credentials: str) -> None:
    rendered = bootstrap.script(load(tmp_path, FULL + f"ecr_credentials: {credentials}\n"))
    assert ("password $(aws ecr get-login-password --region us-east-1)\n" in rendered) == (
        credentials == "substitution"
    )
    assert ("OnUnitActiveSec=6h" in rendered) == (credentials == "timer")


def test_hooks_need_absolute_paths() -> None:
    with pytest.raises(ConfigError, match="not an absolute path"):
        bootstrap.hooks(Path("/fsx"), "sqshpipe")
