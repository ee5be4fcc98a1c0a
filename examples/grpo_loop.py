"""A GRPO-style loop whose completions are packed per window: lengths are known only once they are generated.

    python -m examples.grpo_loop
    torchrun --nproc-per-node 2 -m examples.grpo_loop

Each step samples a group of completions per prompt, scores them, and packs the whole window at once. Advantages and the
log-probabilities of the sampling policy are fields of the pack like the labels. The gradient of each step is compared
with that of its completions one by one.
"""

import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from examples.small import VOCABULARY, difference, flat_gradient, make_model
from packsched import WindowBuffer
from packsched.torch import PackCollator, backward_window

GROUP, PROMPTS, MICRO_STEPS, CLIP, END = 4, 4, 4, 0.2, 0
collate = PackCollator({"input_ids": 0, "labels": -100, "advantages": 0.0, "old_logps": 0.0})


def generate(model: torch.nn.Module, prompt: list[int], generator: torch.Generator) -> list[int]:
    """Samples tokens until the end token or 40 of them."""
    ids = list(prompt)
    while len(ids) < len(prompt) + 40 and (ids[-1] != END or len(ids) == len(prompt)):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[END] += 2.0  # so that the lengths differ
        ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return ids


def logps_of(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Log-probability of each label, at the position of the label; 0 where there is none."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "advantages", "old_logps")}
    logps = model(**inputs).logits[:, :-1].log_softmax(-1)
    chosen = logps.gather(-1, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    return torch.nn.functional.pad(chosen * (batch["labels"][:, 1:] != -100), (1, 0))


def make_segments(model: torch.nn.Module, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """Generates and scores this rank's completions of one step."""
    segments = []
    with torch.no_grad():
        for _ in range(PROMPTS):
            prompt = torch.randint(1, VOCABULARY, (6,), generator=generator).tolist()
            group = [torch.tensor(generate(model, prompt, generator)) for _ in range(GROUP)]
            rewards = torch.tensor([float((ids[6:] % 2 == 0).double().mean()) for ids in group], dtype=torch.float64)
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            for ids, advantage in zip(group, advantages, strict=True):
                segment = {"input_ids": ids, "labels": torch.cat([torch.full((6,), -100), ids[6:]])}
                batch = {name: value[None] for name, value in segment.items()}
                # A policy that moved since it sampled, so that ratios and clipping matter here.
                old_logps = logps_of(model, batch)[0] + 0.3 * torch.randn(len(ids), generator=generator).double()
                segments.append(segment | {"advantages": advantage.expand(len(ids)), "old_logps": old_logps})
    return segments


def loss_sum(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Sum of the clipped policy losses over the completions' tokens; the window divides it (`dapo`)."""
    ratio = (logps_of(model, batch) - batch["old_logps"]).exp()
    losses = torch.maximum(-ratio * batch["advantages"], -ratio.clamp(1 - CLIP, 1 + CLIP) * batch["advantages"])
    return (losses * (batch["labels"] != -100)).sum()


def main(steps: int = 2) -> tuple[float, list[int]]:
    """Trains; returns the largest difference of the gradients, and the forwards of each step."""
    if "RANK" in os.environ and not distributed.is_initialized():  # torchrun sets it
        distributed.init_process_group("gloo")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    model = make_model()
    trained = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generators = [torch.Generator().manual_seed(r) for r in range(ranks)]
    worst, forwards = 0.0, []
    for step in range(steps):
        every = [make_segments(model, generator) for generator in generators]  # those of other ranks for the check
        window: WindowBuffer = WindowBuffer(packing_length=192, micro_steps=MICRO_STEPS)
        for segment in every[rank]:
            window.add(segment, len(segment["input_ids"]))
        packs = window.take_packs()

        model.zero_grad()
        total = sum(int((segment["labels"] != -100).sum()) for segments in every for segment in segments)
        for segment in (segment for segments in every for segment in segments):
            (loss_sum(model, collate([segment])) / total).backward()
        expected = flat_gradient(model)

        model.zero_grad()
        backward_window(trained, [collate(pack.segments) for pack in packs], lambda batch: loss_sum(trained, batch))
        worst = max(worst, difference(flat_gradient(model), expected))
        forwards.append(sum(1 for pack in packs if pack.segments))
        print(f"rank {rank}, step {step}: {len(every[rank])} completions in {forwards[-1]} of {MICRO_STEPS} packs")
        optimizer.step()
    print(f"relative difference of the gradients: {worst:.1e}")
    assert worst < 1e-12, worst
    return worst, forwards


if __name__ == "__main__":
    main()
    if distributed.is_initialized():
        distributed.destroy_process_group()
