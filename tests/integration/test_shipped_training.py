"""The training script that is shipped, run: two ranks on this host's CPUs, over gloo, with the real datasets.

PyTorch for CPUs is large and not in every package index: it is installed once, into an environment of its
own, and the tests say why they are skipped where that does not work. The choice of the GPU needs none of it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.timeout(900)  # the first test installs PyTorch

SCRIPT = Path(__file__).parents[2] / "dockerfiles" / "megatron-training" / "train.py"
WANTED = ["torch==2.13.0+cpu", "datasets==2.16.0", "numpy<2", "pyarrow<15"]
SMALL = ["--length=16", "--width=32", "--heads=4", "--layers=2", "--batch=2", "--report-every=1"]

MAKE_DATA = """
import sys
from datasets import Dataset, DatasetDict
folder = sys.argv[1]
lines = ["", " = A heading = ", *(f"The cat {n} sat on the mat and looked at the dog." for n in range(200))]
text, few = Dataset.from_dict({"text": lines}), Dataset.from_dict({"text": lines[:5]})
DatasetDict({"train": text, "test": few, "validation": few}).save_to_disk(folder + "/dict")
text.save_to_disk(folder + "/text")
rows = [[(n * k) % 97 for k in range(20)] for n in range(64)]
Dataset.from_dict({"input_ids": rows}).save_to_disk(folder + "/rows")
Dataset.from_dict({"input_ids": [[n % 97] * (n % 7) for n in range(640)]}).save_to_disk(folder + "/short")
Dataset.from_dict({"label": [1]}).save_to_disk(folder + "/neither")
"""


@pytest.fixture(scope="module")
def python() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "sqshpipe-tests" / "training"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for argv in (
            [sys.executable, "-m", "venv", folder],
            [folder / "bin" / "pip", "install", "-q", *WANTED],
        ):
            done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=540)
            if done.returncode != 0:
                shutil.rmtree(folder, ignore_errors=True)
                # not `missing`: an index without PyTorch for CPUs is no fault of this machine
                pytest.skip(f"no PyTorch for CPUs to install here: {done.stderr.strip()[-200:]}")
        (folder / "ready").touch()
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def data(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([python, "-c", MAKE_DATA, folder], check=True, capture_output=True, timeout=120)
    return folder


def start(python: Path, *words: str | Path, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """The ranks of one node as srun starts them: Slurm's variables and nothing else."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [python, SCRIPT, *SMALL, *map(str, words)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "OMP_NUM_THREADS": "1",
                "MASTER_PORT": port,
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_NTASKS": str(ranks),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def train(python: Path, *words: str | Path, ranks: int = 2, code: int = 0) -> str:
    started = start(python, *words, ranks=ranks)
    try:
        said = [each.communicate(timeout=200)[0] for each in started]
    finally:
        for each in started:
            each.kill()  # a rank whose neighbour has failed waits for it
    assert {each.returncode for each in started} == {code}, "\n".join(said)
    return "\n".join(said)


def losses(said: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+) loss ([\d.]+)", said)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["dict", "rows", "short"])
def test_two_ranks_learn_from_a_saved_dataset(python: Path, data: Path, kind: str) -> None:
    seen = losses(train(python, "--data", data / kind, "--steps=25", "--rate=1e-2"))
    assert list(seen) == list(range(25))
    assert seen[24] < seen[0] - 0.5


@pytest.mark.timeout(300)
def test_what_cannot_be_trained_on_is_said(python: Path, data: Path) -> None:
    assert "neither input_ids nor text: label" in train(python, "--data", data / "neither", ranks=1, code=1)
    assert "no split nothing: train, test, validation" in train(
        python, "--data", data / "dict", "--split=nothing", ranks=1, code=1
    )
    assert "--tensor-parallel 2 does not divide 1 ranks" in train(
        python, "--tensor-parallel=2", ranks=1, code=1
    )


@pytest.mark.timeout(300)
def test_a_run_that_is_killed_continues_as_if_it_had_not_been(
    python: Path, data: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = ["--data", data / "dict", "--save-every=4", "--keep=2"]
    whole = losses(train(python, *words, "--steps=14", "--checkpoints", tmp_path / "whole"))
    folder = tmp_path / "killed"
    ranks = start(python, *words, "--steps=100000", "--checkpoints", folder)
    deadline = time.monotonic() + 100
    while not (folder / "step-00000008").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for each in ranks:
        each.send_signal(signal.SIGKILL)
    for each in ranks:
        each.communicate()
    for later in folder.glob("step-*"):  # it ran on until it was killed
        if later.name > "step-00000008":
            shutil.rmtree(later)
    assert (folder / "step-00000008").is_dir()
    (folder / ".step-00000012.unfinished").mkdir(exist_ok=True)
    said = train(python, *words, "--steps=14", "--checkpoints", folder)
    assert "continues at step 8" in said
    after = losses(said)
    assert list(after) == list(range(8, 14))
    assert after == pytest.approx({step: whole[step] for step in after}, abs=2e-3)
    assert sorted(each.name for each in folder.glob("step-*")) == ["step-00000012", "step-00000014"]
    assert "is of another model" in train(python, *words, "--layers=3", "--checkpoints", folder, code=1)


@pytest.mark.timeout(300)
@pytest.mark.slow  # four launches, the last with four ranks: minutes on two cores
def test_layers_that_ranks_share_compute_what_one_rank_computes(
    python: Path, data: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = ["--data", data / "rows", "--steps=6"]
    alone = losses(train(python, *words, ranks=1))
    shared = losses(train(python, *words, "--tensor-parallel=2", "--checkpoints", tmp_path))
    assert shared == pytest.approx(alone, abs=2e-3)
    assert sorted(each.name for each in (tmp_path / "step-00000006").iterdir()) == ["part-0.pt", "part-1.pt"]
    two = losses(train(python, *words, ranks=2))
    pairs = losses(train(python, *words, "--tensor-parallel=2", ranks=4))
    assert pairs == pytest.approx(two, abs=2e-3)


@pytest.mark.parametrize(
    ("seen", "local_rank", "device"),
    [(0, 3, "cpu"), (1, 0, "cuda:0"), (1, 3, "cuda:0"), (8, 3, "cuda:3"), (8, 7, "cuda:7"), (2, 3, None)],
)
def test_each_process_takes_its_own_gpu(seen: int, local_rank: int, device: str | None) -> None:
    """Under --gpus-per-task=1 a rank sees one GPU, its own; without it all of the node."""
    chosen: list[int] = []
    cuda = SimpleNamespace(is_available=lambda: seen > 0, device_count=lambda: seen, set_device=chosen.append)
    torch = SimpleNamespace(
        cuda=cuda, device=lambda kind, index=None: kind if index is None else f"{kind}:{index}"
    )
    tree = ast.parse(SCRIPT.read_text())
    tree.body = [each for each in tree.body if getattr(each, "name", "") == "own_device"]
    assert tree.body
    tree.body[0].returns = None  # type: ignore[attr-defined]
    names: dict[str, object] = {"torch": torch}
    exec(compile(tree, str(SCRIPT), "exec"), names)
    own_device = names["own_device"]
    assert callable(own_device)
    if device is None:
        with pytest.raises(SystemExit, match="start one task a GPU"):
            own_device(local_rank)
        return
    assert own_device(local_rank) == device
    assert chosen == ([] if device == "cpu" else [int(device[-1])])
