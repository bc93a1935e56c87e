"""What squeue says of jobs, read whatever people write into their comments."""

from __future__ import annotations

import pytest

from pipeline.slurm import client


def test_every_line_of_a_comment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = "a" * 64, "b" * 64, "c" * 64
    reported = (
        f"7|RUNNING|1000|n1|sqshpipe:{one}\n"
        f"8|PENDING|1000||see the ticket\nsqshpipe:{two}\n"
        f"9|COMPLETING|1000|n2|a|b sqshpipe:{three}\n"
    )
    monkeypatch.setattr(client, "config", dict)
    monkeypatch.setattr(client, "_ask", lambda _: reported)
    found = {job.id: job.digests for job in client.jobs()}
    assert found == {"7": {one}, "8": {two}, "9": {three}}
