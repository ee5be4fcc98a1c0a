"""packsched in a plain PyTorch loop, on one process or under DDP.

    python -m examples.plain_loop
    torchrun --nproc-per-node 2 -m examples.plain_loop

Windows are planned over a data set whose lengths are known. The ranks get unequal numbers of packs, and none waits for
another. The gradient of the first window is compared with that of its samples one by one.
"""

import os
from itertools import islice

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from examples.small import difference, flat_gradient, make_model, make_samples, unpacked_gradient
from packsched.torch import PackCollator, WindowBatchSampler, backward_window

MICRO_STEPS = 4
WINDOW = 16  # samples per optimizer step, on all ranks together


def make_sampler(lengths: list[int], *, rank: int, ranks: int) -> WindowBatchSampler:
    return WindowBatchSampler(
        lengths,
        packing_length=192,
        micro_steps=MICRO_STEPS,
        batch_size=WINDOW // MICRO_STEPS // ranks,
        num_replicas=ranks,
        rank=rank,
    )


def main() -> tuple[float, list[int]]:
    """Trains one epoch; returns the difference of the first gradient, and how many forwards each window took."""
    if "RANK" in os.environ and not distributed.is_initialized():  # torchrun sets it
        distributed.init_process_group("gloo")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    samples, model = make_samples(72), make_model()
    lengths = [len(sample["input_ids"]) for sample in samples]

    sampler = make_sampler(lengths, rank=rank, ranks=ranks)
    loader = DataLoader(samples, batch_sampler=sampler, collate_fn=PackCollator())  # type: ignore[arg-type]
    trained = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    forwards: list[int] = []

    def loss_sum(batch: dict) -> torch.Tensor:
        forwards[-1] += 1
        return trained(**batch, num_items_in_batch=1).loss  # transformers divides the sum of the losses by 1

    # Planned for one rank, the first window holds the same samples as on all ranks together.
    first = [samples[i] for pack in islice(make_sampler(lengths, rank=0, ranks=1), MICRO_STEPS) for i in pack]
    expected = unpacked_gradient(model, first)
    apart = 0.0
    packs = iter(loader)
    for step, batches in enumerate(zip(*[packs] * MICRO_STEPS, strict=True)):
        forwards.append(0)
        loss = backward_window(trained, batches, loss_sum)
        if step == 0:
            apart = difference(flat_gradient(model), expected)
        optimizer.step()
        optimizer.zero_grad()
        print(f"rank {rank}, step {step}: {forwards[-1]} forwards, this rank's part of the loss {loss:.4f}")
    print(f"relative difference of the gradients: {apart:.1e}")
    assert apart < 1e-12, apart
    return apart, forwards


if __name__ == "__main__":
    main()
    if distributed.is_initialized():
        distributed.destroy_process_group()
