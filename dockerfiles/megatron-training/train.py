"""Trains a GPT of plain PyTorch: one process a GPU, data parallel, and tensor parallel as Megatron does it.

Under Slurm: srun --ntasks-per-node=8 --gpus-per-task=1 --container-image=megatron-training python train.py
RANK, LOCAL_RANK and WORLD_SIZE come from Slurm's variables where nothing else has set them. A run that is
started again with the same --checkpoints continues at its newest checkpoint.
"""

import argparse
import itertools
import os
import re
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

STEP = re.compile(r"step-([0-9]{8})")


def main() -> None:
    options = parse_options()
    rank, local_rank, world = place_in_job()
    device = own_device(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world)
    train(options, rank, world, device)
    # together, and after train() has let go of its groups: a process can hang that ends with them
    dist.barrier()
    dist.destroy_process_group()


def train(options: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    tensor, data = groups(rank, world, options.tensor_parallel)
    blocks = Blocks(options)
    options.vocabulary = max(options.vocabulary, blocks.vocabulary)

    torch.manual_seed(options.seed)  # the same model on every rank: each keeps its part of it
    model = Gpt(options, tensor).to(device)
    # no buffers, and gradients are averaged over the ranks that hold the same part
    engine = nn.parallel.DistributedDataParallel(model, process_group=data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    checkpoints = Checkpoints(options, tensor, data)
    start = checkpoints.resume(model, optimizer, device)
    run = wandb_run(options) if rank == 0 else None

    for step in range(start, options.steps):
        tokens = blocks.batch(step, dist.get_rank(data), dist.get_world_size(data)).to(device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits = engine(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        model.average_shared_gradients()
        optimizer.step()
        if step % options.report_every == 0 or step + 1 == options.steps:
            mean = loss.detach() / dist.get_world_size(data)
            dist.all_reduce(mean, group=data)
            if rank == 0:
                print(f"step {step} loss {mean.item():.4f}", flush=True)
            if run is not None:
                run.log({"loss": mean.item()}, step=step)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            checkpoints.save(step + 1, model, optimizer)
    if run is not None:
        run.finish()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="saved with save_to_disk: input_ids, or text (WikiText); else made-up tokens"
    )
    parser.add_argument("--split", default="train", help="of a DatasetDict")
    parser.add_argument("--tokenizer", help="for text: of transformers, a name or folder; else its bytes")
    parser.add_argument("--checkpoints", type=Path, help="a folder that all nodes share")
    parser.add_argument("--save-every", type=int, default=500, help="steps; also at the end")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints that stay")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--report-every", type=int, default=10, help="steps")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share each layer")
    parser.add_argument("--batch", type=int, default=4, help="sequences a GPU and step")
    parser.add_argument("--length", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--width", type=int, default=1024, help="a multiple of the heads")
    parser.add_argument("--heads", type=int, default=16, help="a multiple of --tensor-parallel")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=256, help="at least; the data's own, if larger")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def place_in_job() -> tuple[int, int, int]:
    """Rank, rank on this node and number of ranks, and the environment that torch.distributed reads."""
    for name, slurm, alone in (
        ("RANK", "SLURM_PROCID", "0"),
        ("LOCAL_RANK", "SLURM_LOCALID", "0"),
        ("WORLD_SIZE", "SLURM_NTASKS", "1"),
    ):
        os.environ.setdefault(name, os.environ.get(slurm, alone))
    if os.environ.get("SLURM_NNODES", "1") == "1":  # over several nodes the job has to say where rank 0 is
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        raise SystemExit("train.py: MASTER_ADDR is not set: export the first node's name in the job script")
    return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])


def own_device(local_rank: int) -> torch.device:
    """The one GPU of this process: the only one that it sees (--gpus-per-task=1), else the LOCAL_RANK-th."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen == 0:
        return torch.device("cpu")
    index = 0 if seen == 1 else local_rank
    if index >= seen:
        raise SystemExit(f"train.py: rank {local_rank} of this node sees {seen} GPUs: start one task a GPU")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def groups(rank: int, world: int, size: int) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The ranks that share this rank's layers (neighbours), and those that hold the same part of them."""
    if size < 1 or world % size:
        raise SystemExit(f"train.py: --tensor-parallel {size} does not divide {world} ranks")
    mine: dict[str, dist.ProcessGroup] = {}
    tensor = [range(first, first + size) for first in range(0, world, size)]
    data = [range(first, world, size) for first in range(size)]
    for kind, ranks in [*(("tensor", each) for each in tensor), *(("data", each) for each in data)]:
        made = dist.new_group(list(ranks))  # every rank takes part in making every group
        if rank in ranks:
            mine[kind] = made
    return mine["tensor"], mine["data"]


# --- the model: layers that a group of ranks shares -----------------------------------------------------


class _Copy(torch.autograd.Function):
    """Into the shared part of a layer: the same input for each rank, so its gradients add up."""

    @staticmethod
    def forward(context, value, group):
        context.group = group
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=context.group)
        return gradient, None


class _Sum(torch.autograd.Function):
    """Out of the shared part of a layer: the sum of what each rank has computed."""

    @staticmethod
    def forward(_, value, group):
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(_, gradient):
        return gradient, None


def part(weight: torch.Tensor, axis: int, group: dist.ProcessGroup) -> nn.Parameter:
    """This rank's share of a weight that every rank has drawn alike."""
    return nn.Parameter(weight.chunk(dist.get_world_size(group), axis)[dist.get_rank(group)].clone())


class Block(nn.Module):
    """A transformer layer whose heads and hidden units are spread over the tensor group."""

    def __init__(self, options: argparse.Namespace, group: dist.ProcessGroup) -> None:
        super().__init__()
        width, self.group = options.width, group
        self.heads = options.heads // dist.get_world_size(group)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape) * 0.02

        self.query, self.key, self.value = (part(drawn(width, width), 0, group) for _ in range(3))
        self.attended = part(drawn(width, width), 1, group)
        self.up = part(drawn(4 * width, width), 0, group)
        self.down = part(drawn(width, 4 * width), 1, group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _Copy.apply(self.before(x), self.group)
        split = [
            functional.linear(y, weight).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for weight in (self.query, self.key, self.value)
        ]
        y = functional.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2)
        x = x + _Sum.apply(functional.linear(y, self.attended), self.group)
        y = _Copy.apply(self.between(x), self.group)
        y = functional.gelu(functional.linear(y, self.up))
        return x + _Sum.apply(functional.linear(y, self.down), self.group)


class Gpt(nn.Module):
    def __init__(self, options: argparse.Namespace, group: dist.ProcessGroup) -> None:
        super().__init__()
        if options.width % options.heads or options.heads % dist.get_world_size(group):
            raise SystemExit("train.py: --width is a multiple of --heads, and those of --tensor-parallel")
        self.words = nn.Embedding(options.vocabulary, options.width)
        self.places = nn.Embedding(options.length, options.width)
        self.blocks = nn.ModuleList(Block(options, group) for _ in range(options.layers))
        self.last = nn.LayerNorm(options.width)
        self.group = group
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.last(x), self.words.weight)

    def average_shared_gradients(self) -> None:
        """What every rank of a tensor group holds whole stays equal, whatever the rounding of each."""
        size = dist.get_world_size(self.group)
        if size == 1:
            return
        whole = [
            self.words,
            self.places,
            self.last,
            *(b.before for b in self.blocks),
            *(b.between for b in self.blocks),
        ]
        for weight in itertools.chain.from_iterable(each.parameters() for each in whole):
            dist.all_reduce(weight.grad, group=self.group)
            weight.grad /= size


# --- data ---------------------------------------------------------------------------------------------


class Blocks:
    """Sequences of length + 1 tokens, any of them at once, so that a run can continue at any step."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size, self.batch_size, self.seed = options.length + 1, options.batch, options.seed
        self.vocabulary, self.rows, self.tokens = 0, None, None
        if options.data is None:
            generator = torch.Generator().manual_seed(options.seed)
            self.tokens = torch.randint(options.vocabulary, (64 * self.size,), generator=generator)
        else:
            self._read(options)
        self.count = len(self.tokens) // self.size if self.tokens is not None else len(self.rows)
        if self.count == 0:
            raise SystemExit(f"train.py: {options.data} has fewer than {self.size} tokens")

    def _read(self, options: argparse.Namespace) -> None:
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(options.data)
        if isinstance(found, DatasetDict):
            if options.split not in found:
                raise SystemExit(f"train.py: {options.data} has no split {options.split}: {', '.join(found)}")
            found = found[options.split]
        columns = found.column_names
        if "input_ids" in columns:
            rows = found.with_format("torch", columns=["input_ids"])
            if len(rows) and len(rows[0]["input_ids"]) >= self.size:
                self.rows = rows
            else:  # short rows are joined
                self.tokens = torch.cat([row["input_ids"] for row in rows]) if len(rows) else torch.empty(0)
            # one pass over the data: a token beyond the table would end the run later, and without a sentence
            self.vocabulary = 1 + max(
                (int(row["input_ids"].max()) for row in rows if len(row["input_ids"])), default=0
            )
        elif "text" in columns:
            self.tokens, self.vocabulary = encoded(found["text"], options.tokenizer)
        else:
            raise SystemExit(f"train.py: {options.data} has neither input_ids nor text: {', '.join(columns)}")

    def batch(self, step: int, place: int, places: int) -> torch.Tensor:
        """The sequences of one step for one of the data-parallel places: [batch, length + 1]."""
        first = (step * places + place) * self.batch_size
        return torch.stack([self._sequence(number) for number in range(first, first + self.batch_size)])

    def _sequence(self, number: int) -> torch.Tensor:
        epoch, place = divmod(number, self.count)
        index = int(self._order(epoch)[place])
        if self.rows is not None:
            return self.rows[index]["input_ids"][: self.size].long()
        return self.tokens[index * self.size : (index + 1) * self.size].long()

    def _order(self, epoch: int) -> torch.Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._shuffled = epoch, torch.randperm(self.count, generator=generator)
        return self._shuffled


def encoded(texts: list[str], tokenizer: str | None) -> tuple[torch.Tensor, int]:
    """All texts as tokens, one after the other, and how many different tokens there are."""
    if tokenizer is None:
        return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8), 256
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tokenizer)
    ids = itertools.chain.from_iterable(
        made("\n".join(texts[n : n + 1000]))["input_ids"] for n in range(0, len(texts), 1000)
    )
    return torch.tensor(list(ids), dtype=torch.int32), len(made)


# --- checkpoints --------------------------------------------------------------------------------------


class Checkpoints:
    """CHECKPOINTS/step-NNNNNNNN/part-K.pt, K by rank of the tensor group; such a folder is complete."""

    def __init__(
        self, options: argparse.Namespace, tensor: dist.ProcessGroup, data: dist.ProcessGroup
    ) -> None:
        self.folder, self.keep = options.checkpoints, options.keep
        self.shape = {
            name: getattr(options, name) for name in ("width", "heads", "layers", "length", "vocabulary")
        }
        self.shape["tensor_parallel"] = dist.get_world_size(tensor)
        self.name, self.writes = f"part-{dist.get_rank(tensor)}.pt", dist.get_rank(data) == 0

    def _complete(self) -> list[Path]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(each for each in self.folder.iterdir() if STEP.fullmatch(each.name))

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
        """Load the newest checkpoint, if there is one; the step to continue with."""
        newest = [str(self._complete()[-1])] if dist.get_rank() == 0 and self._complete() else [None]
        dist.broadcast_object_list(
            newest, src=0
        )  # all ranks take the same one, whatever their file system shows
        if newest[0] is None:
            return 0
        held = torch.load(Path(newest[0]) / self.name, map_location=device, weights_only=True)
        if held["shape"] != self.shape:
            raise SystemExit(f"train.py: {newest[0]} is of another model: {held['shape']}, not {self.shape}")
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        if dist.get_rank() == 0:
            print(f"continues at step {held['step']} from {newest[0]}", flush=True)
        return held["step"]

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """All parts, then the name: a run that is killed here leaves the former checkpoint as the newest."""
        if self.folder is None:
            return
        done, unfinished = self.folder / f"step-{step:08}", self.folder / f".step-{step:08}.unfinished"
        if self.writes:
            unfinished.mkdir(parents=True, exist_ok=True)
            held = {
                "step": step,
                "shape": self.shape,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with (unfinished / self.name).open("wb") as file:
                torch.save(held, file)
                file.flush()
                os.fsync(file.fileno())
        dist.barrier()
        if dist.get_rank() == 0:
            if done.exists():
                shutil.rmtree(done)
            unfinished.rename(done)
            for old in self._complete()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
            print(f"saved {done} at {time.strftime('%H:%M:%S')}", flush=True)
        dist.barrier()


def wandb_run(options: argparse.Namespace):
    """Without wandb nothing is logged; without WANDB_API_KEY the run is kept on disk, for `wandb sync`."""
    try:
        import wandb
    except ImportError:
        return None
    values = {name: str(value) for name, value in vars(options).items()}
    mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return wandb.init(project="megatron-training", config=values, mode=mode)


if __name__ == "__main__":
    main()
