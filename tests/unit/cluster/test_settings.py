"""cluster.yaml: what it takes, what it refuses, and what is rendered from it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from pipeline.attest import signing
from pipeline.cluster import bootstrap, settings
from pipeline.errors import ConfigError
from tests.unit.store.test_signatures import write_keys

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
        ("name: [", "not valid YAML"),
        ("store: relative", "store"),
        ("store: /fsx/$(rm -rf /)", "store"),
        ("os: centos7", "os"),
        ("os: alinux2", "os"),  # ParallelCluster takes these two no more
        ("os: ubuntu2004", "os"),
        ("registries: ['https://x/y']", "without https"),
        ("lustre: {gib: 3000}", "multiple of 2400"),
        ('jobs: {env: {NCCL_DEBUG: "a\\nb"}}', "NCCL_DEBUG"),
        ("jobs: {mounts: ['/x:y']}", "mounts"),
        ("jobs: {mounts: ['/x:/y:']}", "mounts"),
        ("jobs: {time: soon}", "write a time"),
        ("jobs: {time: 1:2:3:4}", "write a time"),
        ("jobs: {time: '00:00:10'}", "at least one"),
        ("jobs: {time: 0}", "write a time"),
        ("a: 1\na: 2", "given twice"),
        ("jobs: {mounts: ['/x;y']}", "mounts"),
        ("software: {pyxis: {version: '1', url: 'http://x/y', sha256: abc}}", "url"),
        ("gpu: {subnet: x, capacity_reservation: nope}", "capacity_reservation"),
        (
            f"existing: leave\nsoftware: {{pyxis: {{version: '1', url: 's3://x/y', sha256: {'0' * 64}}}}}",
            "leave installs nothing",
        ),
    ],
)
def test_a_bad_value_is_reported_with_its_key(tmp_path: Path, text: str, says: str) -> None:
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
    assert queue["CustomActions"]["OnNodeConfigured"]["Sequence"] == [
        {"Script": "s3://my-bucket/cluster/bootstrap.sh"}
    ]
    storage = {each["StorageType"]: each for each in rendered["SharedStorage"]}
    assert storage["FsxLustre"]["FsxLustreSettings"]["PerUnitStorageThroughput"] == 250
    assert storage["FsxLustre"]["FsxLustreSettings"]["DeletionPolicy"] == "Retain"
    assert storage["FsxOpenZfs"]["FsxOpenZfsSettings"] == {"VolumeId": "fsvol-0123456789abcdef0"}
    for access in (rendered["HeadNode"]["Iam"]["S3Access"], queue["Iam"]["S3Access"]):
        assert access == [{"BucketName": "my-bucket", "KeyName": "cluster/*", "EnableWriteAccess": False}]


def test_a_capacity_reservation_brings_its_own_placement(tmp_path: Path) -> None:
    text = FULL.replace("max: 8", "max: 8, capacity_reservation: cr-0123456789abcdef0")
    rendered = yaml.safe_load(bootstrap.cluster_file(load(tmp_path, text)))
    (queue,) = rendered["Scheduling"]["SlurmQueues"]
    assert queue["CapacityReservationTarget"] == {"CapacityReservationId": "cr-0123456789abcdef0"}
    assert queue["Networking"]["PlacementGroup"] == {"Enabled": False}


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("us-east-1", "aws"),
        ("us-gov-west-1", "aws-us-gov"),
        ("cn-north-1", "aws-cn"),
        ("eusc-de-east-1", "aws-eusc"),
    ],
)
def test_policies_are_those_of_the_regions_partition(tmp_path: Path, region: str, partition: str) -> None:
    text = FULL.replace("region: us-east-1", f"region: {region}")
    rendered = bootstrap.cluster_file(load(tmp_path, text))
    for policy in ("AmazonEC2ContainerRegistryPullOnly", "AmazonSSMManagedInstanceCore"):
        assert rendered.count(f"Policy: arn:{partition}:iam::aws:policy/{policy}\n") == 2
    own = f"arn:{partition}:iam::123456789012:policy/mine"
    assert f"Policy: {own}\n" in bootstrap.cluster_file(load(tmp_path, f"{text}pull_policy: {own}\n"))


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
        bootstrap.hooks(Path("/opt/x.json"), "sqshpipe")


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("90", timedelta(minutes=90)),
        ("05:30", timedelta(minutes=5, seconds=30)),
        ("00:05:00", timedelta(minutes=5)),
        ("48:00:00", timedelta(hours=48)),
        ("2-00", timedelta(days=2)),
        ("2-12:30", timedelta(days=2, hours=12, minutes=30)),
        ("2-00:00:00", timedelta(days=2)),
        ("2h", timedelta(hours=2)),
    ],
)
def test_a_jobs_time_is_written_as_slurm_writes_it(tmp_path: Path, written: str, time: timedelta) -> None:
    assert load(tmp_path, f"jobs: {{time: {written}}}").jobs.time == time


@pytest.mark.parametrize(
    ("gpu", "jobs", "cpus"),
    [
        ("{subnet: x}", "{}", 6),
        ("{subnet: x, instance: p5.48xlarge}", "{}", 12),
        ("{subnet: x, instance: g5.12xlarge}", "{gpus_per_node: 4}", 6),
        ("{subnet: x}", "{cpus_per_task: 4}", 4),
        ("{subnet: x, instance: new.48xlarge}", "{}", None),
        ("{subnet: x, instance: new.48xlarge}", "{cpus_per_task: 50}", 50),
    ],
)
def test_cpus_of_a_task_fit_the_node(tmp_path: Path, gpu: str, jobs: str, cpus: int | None) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"gpu: {gpu}\njobs: {jobs}\n")
    assert settings.load_jobs(path).cpus_per_task == cpus


def test_cpus_that_no_node_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("gpu: {subnet: x}\njobs: {cpus_per_task: 12}\n")
    with pytest.raises(ConfigError, match=r"12 CPUs do not fit p4d.24xlarge: without SMT it has 48"):
        settings.load_jobs(path)


def test_nodes_that_require_signatures(tmp_path: Path) -> None:
    """The script writes the node's policy before the importer, and an invalid key is refused at once."""
    _, public = write_keys(tmp_path, "ours")
    made = settings.ClusterSettings(require_signature=Path(public).read_text())
    text = bootstrap.script(made)
    policy = json.loads(text.partition("<< 'POLICY'\n")[2].partition("\nPOLICY\n")[0])
    assert list(policy["keys"]) == [signing.open_key(public).keyid]
    assert (policy["marks"], policy["mark_uids"]) == ("/var/lib/sqshpipe/signed", [0])
    assert text.index("put 0644 /etc/sqshpipe/signatures.json") < text.index("importer_source | put")
    assert "signatures.json << " not in bootstrap.script(settings.ClusterSettings())
    with pytest.raises(ConfigError, match="holds no public key"):
        bootstrap.script(settings.ClusterSettings(require_signature="mine"))
