"""cluster.yaml from its starter to ParallelCluster's file: what guides configure can be written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster import bootstrap, settings
from pipeline.cluster.merging import merged
from pipeline.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"
QUEUE = "Scheduling.SlurmQueues.0"
ENVIRONMENT = {
    "AWS_REGION": "us-west-2",
    "BUCKET": "training-bucket",
    "PUBLIC_SUBNET_ID": "subnet-0000000000000000a",
    "PRIVATE_SUBNET_ID": "subnet-0000000000000000b",
    "SECURITY_GROUP_ID": "sg-0123456789abcdef0",
    "FSX_OPENZFS_VOLUME_ID": "fsvol-0123456789abcdef0",
    "FSX_LUSTRE_ID": "fs-0123456789abcdef0",
    "CAPACITY_RESERVATION_ID": "cr-0123456789abcdef0",
    "ACCOUNT_ID": "123456789012",
    "KEY_NAME": "my-key",
}
# What a guide for ParallelCluster with p4d or p5 says, written for us.
GUIDE = """
region: ${AWS_REGION}
os: ubuntu2204
local: /scratch/sqshpipe
scripts: s3://${BUCKET}/cluster
head:
  instance: m5.8xlarge
  subnet: ${PUBLIC_SUBNET_ID}
  security_groups: ["${SECURITY_GROUP_ID}"]
  scripts: ["s3://${BUCKET}/docker.sh"]
gpu:
  instance: p4d.24xlarge
  subnet: ${PRIVATE_SUBNET_ID}
  security_groups: ["${SECURITY_GROUP_ID}"]
  min: 4
  max: 4
  reserved: 4
  capacity: CAPACITY_BLOCK
  capacity_reservation: ${CAPACITY_RESERVATION_ID}
  idle_minutes: -1
  scripts: ["s3://${BUCKET}/docker.sh"]
  policies: ["arn:aws:iam::123456789012:policy/jobs-read-data"]
openzfs: {volume: "${FSX_OPENZFS_VOLUME_ID}"}
lustre: {id: "${FSX_LUSTRE_ID}"}
extra:
  Scheduling:
    SlurmSettings:
      CustomSlurmSettings:
        - JobAcctGatherType: jobacct_gather/linux
        - JobCompType: jobcomp/filetxt
        - JobCompLoc: /fsx/slurm/jobs.txt
    SlurmQueues:
      - Name: gpu
        ComputeResources: [{Name: gpu-nodes, Efa: {GdrSupport: true}}]
"""
OURS = "s3://training-bucket/cluster/bootstrap.sh"
BOTH = [{"Script": "s3://training-bucket/docker.sh"}, {"Script": OURS}]
# Only the scripts, only to read; only to pull. Guides give roles full access to S3 and ECR: not ours.
SCRIPTS = [{"BucketName": "training-bucket", "KeyName": "cluster/*", "EnableWriteAccess": False}]
PULL = "arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"
SAID: dict[str, Any] = {
    "Region": "us-west-2",
    "DevSettings.Timeouts.HeadNodeBootstrapTimeout": 43200,
    "DevSettings.Timeouts.ComputeNodeBootstrapTimeout": 7200,
    "Imds.ImdsSupport": "v2.0",
    "Image.Os": "ubuntu2204",
    "HeadNode.InstanceType": "m5.8xlarge",
    "HeadNode.Networking.SubnetId": "subnet-0000000000000000a",
    "HeadNode.Networking.ElasticIp": False,
    "HeadNode.Networking.AdditionalSecurityGroups": ["sg-0123456789abcdef0"],
    "HeadNode.LocalStorage.RootVolume.Size": 500,
    "HeadNode.LocalStorage.RootVolume.DeleteOnTermination": True,
    "HeadNode.CustomActions.OnNodeConfigured.Sequence": BOTH,
    "HeadNode.Iam.S3Access": SCRIPTS,
    "HeadNode.Iam.AdditionalIamPolicies.0.Policy": PULL,
    "HeadNode.Iam.AdditionalIamPolicies.1.Policy": "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore",
    "Scheduling.SlurmSettings.ScaledownIdletime": -1,
    "Scheduling.SlurmSettings.QueueUpdateStrategy": "DRAIN",
    "Scheduling.SlurmSettings.CustomSlurmSettings": [
        {"PropagateResourceLimitsExcept": "MEMLOCK"},
        {"SlurmdTimeout": 1000},
        {"JobAcctGatherType": "jobacct_gather/linux"},
        {"JobCompType": "jobcomp/filetxt"},
        {"JobCompLoc": "/fsx/slurm/jobs.txt"},
    ],
    f"{QUEUE}.CapacityType": "CAPACITY_BLOCK",
    f"{QUEUE}.JobExclusiveAllocation": True,
    f"{QUEUE}.Networking.SubnetIds": ["subnet-0000000000000000b"],
    f"{QUEUE}.Networking.AdditionalSecurityGroups": ["sg-0123456789abcdef0"],
    f"{QUEUE}.Networking.PlacementGroup.Enabled": False,
    f"{QUEUE}.ComputeSettings.LocalStorage.EphemeralVolume.MountDir": "/scratch",
    f"{QUEUE}.ComputeSettings.LocalStorage.RootVolume.Size": 512,
    f"{QUEUE}.CapacityReservationTarget.CapacityReservationId": "cr-0123456789abcdef0",
    f"{QUEUE}.ComputeResources.0.InstanceType": "p4d.24xlarge",
    f"{QUEUE}.ComputeResources.0.MinCount": 4,
    f"{QUEUE}.ComputeResources.0.MaxCount": 4,
    f"{QUEUE}.ComputeResources.0.Efa": {"Enabled": True, "GdrSupport": True},
    f"{QUEUE}.Iam.S3Access": SCRIPTS,
    f"{QUEUE}.Iam.AdditionalIamPolicies.0.Policy": PULL,
    f"{QUEUE}.Iam.AdditionalIamPolicies.1.Policy": "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore",
    f"{QUEUE}.Iam.AdditionalIamPolicies.2.Policy": "arn:aws:iam::123456789012:policy/jobs-read-data",
    f"{QUEUE}.CustomActions.OnNodeConfigured.Sequence": BOTH,
    "SharedStorage.0.StorageType": "FsxLustre",
    "SharedStorage.0.MountDir": "/lustre",
    "SharedStorage.0.FsxLustreSettings.FileSystemId": "fs-0123456789abcdef0",
    "SharedStorage.1.StorageType": "FsxOpenZfs",
    "SharedStorage.1.MountDir": "/fsx",
    "SharedStorage.1.FsxOpenZfsSettings.VolumeId": "fsvol-0123456789abcdef0",
    "Monitoring.DetailedMonitoring": True,
    "Monitoring.Logs.CloudWatch.Enabled": True,
    "Monitoring.Dashboards.CloudWatch.Enabled": True,
}
# Not rendered by default; the file says why.
LEFT_OUT = ("JobAcctGatherType", "JobCompType", "JobCompLoc", "GdrSupport")


def load(tmp_path: Path, text: str) -> settings.ClusterSettings:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return settings.load(path)


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_all_that_a_guide_configures_can_be_written(tmp_path: Path) -> None:
    rendered = yaml.safe_load(bootstrap.cluster_file(load(tmp_path, GUIDE)))
    assert {path: at(rendered, path) for path in SAID} == SAID


@pytest.mark.usefixtures("environment")
def test_each_setting_is_in_the_starters_file_or_a_comment_says_why_not(tmp_path: Path) -> None:
    text = bootstrap.cluster_file(load(tmp_path, bootstrap.starter("parallelcluster")))
    comments = " ".join(line for line in text.splitlines() if line.strip().startswith("#"))
    for name in LEFT_OUT:
        assert name in comments
    keys = {part for path in SAID for part in path.split(".") if not part.isdigit()}
    optional = {"AdditionalSecurityGroups", "Sequence", "CapacityReservationTarget", "CapacityReservationId"}
    for key in keys - optional:
        assert re.search(rf"^ *(- )?{key}:", text, re.MULTILINE), key
    starter = bootstrap.starter("parallelcluster")
    for key in ("security_groups", "scripts", "capacity_reservation"):
        assert f"{key}:" in starter


@pytest.mark.parametrize("kind", ["parallelcluster", "pcs", "hyperpod"])
def test_a_starter_renders_as_it_stands(kind: bootstrap.Kind, tmp_path: Path) -> None:
    made = load(tmp_path, bootstrap.starter(kind))
    subprocess.run(["bash", "-n"], input=bootstrap.script(made), text=True, check=True)
    assert settings.load_jobs(tmp_path / "cluster.yaml").cpus_per_task == (6 if made.gpu else None)
    if kind == "parallelcluster":
        assert yaml.safe_load(bootstrap.cluster_file(made))["Region"] == "us-east-1"
    else:
        assert made.head is None


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("page", ["explanation/cluster.md", "how-to/parallelcluster.md"])
def test_the_example_in_the_documents_renders(tmp_path: Path, page: str) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert examples
    for text in examples:
        made = load(tmp_path, text)
        assert "Region" in bootstrap.cluster_file(made)
        assert bootstrap.script(made)


def test_every_key_is_in_the_starter_or_the_reference() -> None:
    reference = (DOCS / "reference" / "cluster.md").read_text()
    for model in [settings.json_schema(), *settings.json_schema()["definitions"].values()]:
        for key in model["properties"]:
            assert f"| `{key}` |" in reference


def test_a_variable_that_is_not_set_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUBNET", raising=False)
    text = "name: a\ngpu:\n  subnet: ${SUBNET}\njobs: {time: 5}\n"
    with pytest.raises(ConfigError, match=r"cluster.yaml, line 3, gpu.subnet: SUBNET is not set"):
        load(tmp_path, text)
    assert settings.load_jobs(tmp_path / "cluster.yaml").time == timedelta(minutes=5), "no subnet needed"
    monkeypatch.setenv("SUBNET", "subnet-1: {x")
    with pytest.raises(ConfigError, match=r"gpu\.subnet"):
        load(tmp_path, text)
    monkeypatch.setenv("SUBNET", "subnet-1")
    made = load(tmp_path, text + "extra: {A: '$${SUBNET} ${SUBNET} ${NOT_SET:-d}'}")
    assert made.gpu is not None
    assert made.gpu.subnet == "subnet-1"
    assert made.extra == {"A": "${SUBNET} subnet-1 d"}


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ("min: 5, max: 4", "min 5 is more than max 4"),
        ("max: 8, capacity_reservation: cr-0, reserved: 4", "max 8 is more than the 4 that are reserved"),
        ("reserved: 4", "reserved belongs to capacity_reservation"),
        ("min: 2, max: 4, capacity: CAPACITY_BLOCK, capacity_reservation: cr-0", "min as large as max"),
        ("min: 4, max: 4, capacity: CAPACITY_BLOCK", "needs capacity_reservation"),
    ],
)
def test_min_and_max_fit_the_reservation(tmp_path: Path, gpu: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, f"gpu: {{subnet: x, {gpu}}}")


def test_a_store_outside_the_shared_file_systems_is_refused(tmp_path: Path) -> None:
    text = bootstrap.starter("parallelcluster").replace("store: /fsx/containers", "store: /data/containers")
    with pytest.raises(ConfigError, match="/data/containers lies on no shared file system"):
        bootstrap.cluster_file(load(tmp_path, text))


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"a": 1}, {"a": 2, "b": {"c": 3}}, {"a": 2, "b": {"c": 3}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": [2, 3]}, {"a": [1, 2, 3]}),
        (
            {"a": [{"Name": "x", "b": 1}, {"Name": "y"}]},
            {"a": [{"Name": "y", "c": 2}, {"Name": "z", "d": None}]},
            {"a": [{"Name": "x", "b": 1}, {"Name": "y", "c": 2}, {"Name": "z"}]},
        ),
        ({"a": [1]}, {"a": "text"}, {"a": "text"}),
        ({}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
    ],
)
def test_extra_is_merged(below: Any, above: Any, result: Any) -> None:
    assert merged(below, above) == result


def sqshpipe(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pipeline", "cluster", *words]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60)


def test_from_nothing_to_a_cluster_file(tmp_path: Path) -> None:
    assert sqshpipe(tmp_path, "init").stdout == "cluster.yaml\n"
    assert yaml.safe_load(sqshpipe(tmp_path, "config").stdout)["Region"]
    assert sqshpipe(tmp_path, "bootstrap").stdout.startswith("#!/bin/bash\n")
    again = sqshpipe(tmp_path, "init")
    assert (again.returncode, "cluster.yaml is there already" in again.stderr) == (2, True)
    assert sqshpipe(tmp_path, "init", "--for", "pcs", "-o", "pcs.yaml").returncode == 0
    none = sqshpipe(tmp_path, "config", "--values", "none.yaml")
    assert (none.returncode, "sqshpipe cluster init writes one" in none.stderr) == (2, True)
    other = sqshpipe(tmp_path, "config", "--values", "pcs.yaml")
    assert (other.returncode, "has no head" in other.stderr) == (2, True)


def test_the_schema_describes_the_starter() -> None:
    argv = [sys.executable, "-m", "pipeline", "config", "schema", "--cluster"]
    schema = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
    starter = yaml.safe_load(bootstrap.starter("parallelcluster"))
    assert set(starter) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
