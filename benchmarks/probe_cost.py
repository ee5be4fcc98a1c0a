"""What the probes before training cost beside one micro-step: `python -m benchmarks.probe_cost`, a minute on a CPU.

A micro-step is a forward and a backward of a full pack, a quarter of whose positions are supervised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from rollout_sft.checks.leak_probe import check_isolation
from rollout_sft.checks.length_probe import check_lengths
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.step.collate import forward_inputs

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": {},
    "llama, dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
}
PACKS = (2048, 8192)
ROUNDS = 3


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the middle of some rounds, after one that is not counted."""
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def micro_step(model, packing_length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    lens = [packing_length // 16] * 16
    rows = [torch.randint(3, 8000, (n,), generator=draw).tolist() for n in lens]
    inputs = forward_inputs(pack_of([Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in rows]))
    supervised = torch.arange(0, packing_length, 4)
    model.zero_grad()
    logits = model(**prepare_forward(model, {**inputs, "logits_to_keep": supervised})).logits
    torch.nn.functional.cross_entropy(logits[0], inputs["input_ids"][0, supervised], reduction="sum").backward()


def main() -> None:
    print("family           packing_length  micro-step  short probe  lengths  in micro-steps")
    for family, changes in FAMILIES.items():
        for packing_length in PACKS:
            set_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE, **changes)).train()
            choose_attention(model, "auto", device=torch.device("cpu"))
            with RecurrentLayers(model, device=torch.device("cpu")).active():
                step = seconds(lambda model=model, n=packing_length: micro_step(model, n))
                short = seconds(lambda model=model: check_isolation(model))
                lengths = seconds(lambda model=model, n=packing_length: check_lengths(model, n))
            shares = f"{step:9.2f} s {short:10.2f} s {lengths:6.2f} s {(short + lengths) / step:14.2f}"
            print(f"{family:16} {packing_length:14} {shares}", flush=True)


if __name__ == "__main__":
    main()
