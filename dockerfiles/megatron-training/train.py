"""Trains a GPT-2 shaped model with DeepSpeed, one process a GPU.

Under Slurm: srun --ntasks-per-node=8 --container-image=$(sqshpipe resolve megatron-training) python train.py
RANK, LOCAL_RANK and WORLD_SIZE come from Slurm's variables where the container's start has not set them.
"""

import argparse
import os
from collections.abc import Iterator
from itertools import islice

import deepspeed
import torch
import torch.distributed as dist
import wandb
from datasets import load_from_disk
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    options = parse_options()
    rank, local_rank, world = place_in_job()
    torch.cuda.set_device(local_rank)
    deepspeed.init_distributed("nccl")

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=options.vocabulary,
            n_positions=options.length,
            n_embd=options.width,
            n_layer=options.layers,
            n_head=options.width // 64,
        )
    )
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=deepspeed_config(options)
    )
    # Without WANDB_API_KEY the run is kept on disk, for `wandb sync`.
    mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    run = wandb.init(project="megatron-training", config=vars(options), mode=mode) if rank == 0 else None

    for step, batch in enumerate(islice(batches(options, rank, world), options.steps)):
        tokens = batch.to(engine.device)
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        if step % 10 == 0:
            dist.all_reduce(loss, op=dist.ReduceOp.AVG)
            if run is not None:
                run.log({"loss": loss.item()}, step=step)
                print(f"step {step} loss {loss.item():.4f}")

    if options.save:
        engine.save_checkpoint(options.save)
    if run is not None:
        run.finish()
    dist.destroy_process_group()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="a data set saved with save_to_disk, with input_ids; else made-up tokens"
    )
    parser.add_argument("--save", help="folder for the checkpoint at the end")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4, help="sequences a GPU and step")
    parser.add_argument("--length", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=50257)
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
    return tuple(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def deepspeed_config(options: argparse.Namespace) -> dict:
    return {
        "train_micro_batch_size_per_gpu": options.batch,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
    }


def batches(options: argparse.Namespace, rank: int, world: int) -> Iterator[torch.Tensor]:
    """Each rank's own share, for ever."""
    if options.data is None:
        generator = torch.Generator().manual_seed(rank)
        shape = (options.batch, options.length)
        while True:
            yield torch.randint(options.vocabulary, shape, generator=generator)
    share = load_from_disk(options.data).shard(world, rank).with_format("torch")
    while True:
        for part in share.iter(options.batch, drop_last_batch=True):
            yield part["input_ids"][:, : options.length]


if __name__ == "__main__":
    main()
