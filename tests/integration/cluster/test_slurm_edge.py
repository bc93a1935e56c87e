"""What the Slurm client reports about a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.slurm import client as edge
from tests.support.servers.slurm import Slurm, digests_in_use

DIGEST = "ab" * 32
OTHER = "cd" * 32


def test_jobs_name_the_digests_of_pending_and_running_jobs(slurm: Slurm) -> None:
    running = slurm.run(["sbatch", "--parsable", "--comment", f"sqshpipe:{DIGEST}", "--wrap", "sleep 600"])
    held = slurm.run(
        ["sbatch", "--parsable", "-H", "--comment", f"x sqshpipe:sha256:{OTHER} y|z", "--wrap", "true"]
    )
    ids = [running.stdout.strip(), held.stdout.strip()]
    try:
        assert {DIGEST, OTHER} <= digests_in_use()
        assert all(edge.job_exists(job) for job in ids)
    finally:
        slurm.run(["scancel", *ids])
    for job in ids:
        slurm.wait_job(job)
    assert not {DIGEST, OTHER} & digests_in_use()
    assert not any(edge.job_exists(job) for job in ids)
    assert not edge.job_exists("999999")


def test_a_users_own_squeue_defaults_do_not_hide_jobs(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    job = slurm.run(
        ["sbatch", "--parsable", "-H", "--comment", f"sqshpipe:{DIGEST}", "--wrap", "true"]
    ).stdout.strip()
    try:
        monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")
        monkeypatch.setenv("SQUEUE_USERS", "nobody")
        assert DIGEST in digests_in_use()
    finally:
        slurm.run(["scancel", job])


def test_an_unreachable_slurm_is_an_error_and_not_an_empty_answer(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = slurm.conf.read_text().splitlines()
    dead = [line for line in text if not line.startswith("SlurmctldPort=")] + ["SlurmctldPort=9"]
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "\n".join([*dead, "MessageTimeout=2", "SlurmctldTimeout=2"]).replace("SlurmctldTimeout=20\n", "")
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setattr(edge, "ASK_SECONDS", 8.0)
    with pytest.raises(ToolError):
        digests_in_use()
    with pytest.raises(ToolError):
        edge.job_exists("1")


def test_hosts_and_scripts(slurm: Slurm, tmp_path: Path) -> None:
    assert edge.hostnames("gpu[08-10],x") == ("gpu08", "gpu09", "gpu10", "x")
    assert edge.partition_nodes("main") == ("n1", "n2")
    assert edge.cluster_name() == "sqshtest"
    with pytest.raises(ToolError):
        edge.partition_nodes("nowhere")
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH --nodes=7\ntrue\n")
    with pytest.raises(ToolError, match="sbatch"):
        edge.check_script(script)
    script.write_text("#!/bin/sh\n#SBATCH --nodes=2\n#SBATCH --output=/dev/null\ntrue\n")
    edge.check_script(script)
    assert slurm.wait_job(edge.submit(script)) == "COMPLETED"
