"""What each of two ranks runs for the tests of hybrid models: many windows in one start, each beside its segments."""

import copy
import gc
import json
import random
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from rollout_sft import RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together
from tests.distributed.windows import in_turn, is_sharded, train_window
from tests.hybrids import FLOAT32, float64_throughout, hybrid
from tests.image_runs import AnswerBuilder, Catch, flat_gradient
from tests.tiny import shard_in_memory, tiny_arguments
from tests.tiny_images import SPECIAL, VOCABULARY, image_tokenizer

LENGTHS = (2, 12, 90, 3, 7, 30, 4, 5, 18), (9, 3, 2, 70, 6, 11, 2, 25, 8)
"""Tokens of the segments of each rank; the convolutions have three or four."""


def make_samples(rank):
    draw, words, samples = random.Random(rank), range(len(SPECIAL), VOCABULARY), []
    for number, length in enumerate(LENGTHS[rank]):
        prompt = 1 if length < 4 else 3
        ids = draw.choices(words, k=length)
        samples.append({"id": f"{rank}-{number}", "prompt_ids": ids[:prompt], "answer": ids[prompt:]})
    return samples


def gradient(folder, family, *, sharded=False, idle=False, **overrides):
    """The gradient of one window over both ranks beside all their segments alone; `idle`: rank 1 has no segment."""
    folder.mkdir(parents=True, exist_ok=True)
    model = hybrid(family, torch.float32 if family in FLOAT32 else torch.float64, vocab_size=VOCABULARY)
    for parameter in model.parameters():  # A_log of jamba, olmo_hybrid and zamba is float32; FSDP2 wants one dtype
        parameter.data = parameter.data.to(model.dtype)
    reference = copy.deepcopy(model)
    if sharded:  # transformers 5.23 loads kimi_linear and falcon_h1 wrongly where it shards them, so nothing is loaded
        model = shard_in_memory(model)
    if family == "qwen4_exp_text":  # its indexer gets no gradient from short segments
        overrides["ddp_find_unused_parameters"] = True
    samples, catch, builder = in_turn(make_samples(0), make_samples(1)), Catch(), AnswerBuilder()
    trainer = RolloutSFTTrainer(
        model=model,
        args=tiny_arguments(folder, global_max_length=128, reference_fraction=1.0, **overrides),
        processing_class=image_tokenizer(),
        train_dataset=samples,
        target_builder=builder,
        callbacks=[catch],
    )
    everyone = train_window(trainer, idle_rank=1 if idle else None)
    for sample in samples:  # both ranks know all samples
        builder.build_reference(sample)
    flat = [builder.segments[name] for rank in everyone for name in rank]
    total = sum(float(s.weights.sum()) for s in flat)
    for s in flat:
        log_probs = torch.log_softmax(reference(input_ids=s.input_ids[None], use_cache=False).logits[0], dim=-1)
        (-(s.weights * log_probs[torch.arange(len(s.targets)), s.targets]).sum() / total).backward()
    expected = flat_gradient(reference)
    return {
        "difference": float((catch.gradient - expected).norm() / expected.norm()),
        "segments": [len(rank) for rank in everyone],
        "packs": trainer.last_window,
        "sharded": is_sharded(trainer.model),
    }


if __name__ == "__main__":
    PartialState(cpu=True)
    folder, cells = Path(sys.argv[1]), json.loads(sys.argv[2])
    results = {}
    for number, (name, cell) in enumerate(cells.items()):
        with nullcontext() if cell["family"] in FLOAT32 else float64_throughout():
            results[name] = gradient(folder / str(number), **cell)
        gc.collect()  # trainers hold their models in circles
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    leave_together()
