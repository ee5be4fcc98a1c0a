"""What packing saves for hybrid models whose recurrent layers run segment by segment, on one CPU thread.

    python -m benchmarks.hybrid_cost [FAMILY ...]

One window of 48 segments of 10 to 200 tokens, a tenth of them supervised, forward and backward, in three ways: packed
as the trainer packs it, padded in micro-batches of eight, and each segment alone. The three run in turn, three
times, after one round that is not counted. Keeps the seconds of processor time in
`benchmarks/results/hybrid_cost.json` and writes `benchmarks/results/hybrid_cost.md`, whose ratios are medians over the
rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, set_seed

from packsched import plan_window
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.step.collate import collate_pack, collate_padded, split_inputs
from tests.hybrids import HYBRIDS
from tests.tiny_families import tiny_config

RESULTS = Path(__file__).parent / "results"
SIZES = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 1024}
MAMBA = {family: {"mamba_d_head": 64} for family in ("bamba", "granitemoehybrid")} | {"mamba2": {"head_dim": 64}}
MAMBA["falcon_h1"] = {"mamba_d_ssm": 256, "mamba_d_head": 64}
MAMBA["nemotron_h"] = {"mamba_head_dim": 64}
SEGMENTS, PACK, MICRO_BATCH, ROUNDS = 48, 1024, 8, 3
WAYS = ("packed", "padded", "alone")
CPU = torch.device("cpu")


def segments() -> list[Segment]:
    """Lengths are log-normal: median 45, from 10 to 200."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(SEGMENTS):
        length = int(torch.empty(1).log_normal_(3.8, 0.7, generator=generator).clamp(10, 200))
        ids = torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()
        weights = [float(i % 10 == 5) for i in range(length - 1)] + [0.0]
        made.append(Segment.from_lists(ids, ids, weights))
    return made


def sized_model(family: str):
    """The family with the sizes of this benchmark, or, where they do not fit together, with its tiny hidden size."""
    wide = {**SIZES, **MAMBA.get(family, {})}
    narrow = {name: wide[name] for name in ("vocab_size", "max_position_embeddings")}
    for sizes in (wide, narrow):
        set_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(tiny_config(family, **sizes), dtype=torch.float32)
            model(input_ids=torch.tensor([[5, 6]]))
        except Exception as error:  # each family refuses sizes in its own way
            print(f"{family}, hidden size {sizes.get('hidden_size', 'tiny')}: {' '.join(str(error).split())[:100]}")
            continue
        return model.train()
    raise ValueError(f"{family} could not be built")


def run(model, batches) -> float:
    """Processor time of a forward and a backward of every batch, in seconds."""
    model.zero_grad()
    start = time.process_time()
    for batch in batches:
        inputs, supervised, targets, _ = split_inputs(batch.as_inputs())
        inputs = prepare_forward(model, inputs)
        logits = model(**inputs).logits.flatten(0, 1)
        if "logits_to_keep" not in inputs:
            logits = logits[supervised]
        torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
    return time.process_time() - start


def measure(family: str) -> dict[str, list[float]]:
    parts = segments()
    lens = [s.encoded_len for s in parts]
    plan = plan_window(lens, PACK, -(-sum(lens) // PACK) + 1)
    batches = {
        "packed": [collate_pack(pack_of([parts[i] for i in pack]), filler_id=0) for pack in plan.packs if pack],
        "padded": [
            collate_padded(pack_of(parts[i : i + MICRO_BATCH]), filler_id=0) for i in range(0, SEGMENTS, MICRO_BATCH)
        ],
        "alone": [collate_padded(pack_of([part]), filler_id=0) for part in parts],
    }
    model = sized_model(family)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS} | {"hidden_size": [model.config.hidden_size]}
    own = model.config._attn_implementation
    for counted in range(ROUNDS + 1):
        for way in WAYS:
            if way == "packed":
                choose_attention(model, "auto", device=CPU)
                with RecurrentLayers(model, device=CPU).active():
                    taken = run(model, batches[way])
                model.set_attn_implementation(own)
            else:
                taken = run(model, batches[way])
            if counted:
                seconds[way].append(taken)
    return seconds


def page(found: dict[str, dict[str, list[float]]]) -> str:
    lens = [s.encoded_len for s in segments()]
    rows = []
    for family, seconds in found.items():
        padded, alone = (
            statistics.median(a / b for a, b in zip(seconds[way], seconds["packed"], strict=True))
            for way in ("padded", "alone")
        )
        packed = statistics.median(seconds["packed"])
        size = seconds["hidden_size"][0]
        rows.append((padded, f"| {family} | {size} | {packed * 1000:.0f} ms | {padded:.2f} | {alone:.2f} |"))
    table = "\n".join(row for _, row in sorted(rows, reverse=True))
    slower = sum(padded < 1 for padded, _ in rows)
    return f"""# Hybrid models: packed, padded and one by one

Made by `python -m benchmarks.hybrid_cost`: {SEGMENTS} segments of {min(lens)} to {max(lens)} tokens
({sum(lens)} in all), forward and backward in float32, one CPU thread, random weights, two to four layers
(torch {torch.__version__}, transformers {transformers.__version__}).

*Packed* is what the trainer runs without kernels: packs of up to {PACK} tokens, recurrent layers segment by segment.
*Padded* is micro-batches of {MICRO_BATCH} in the order of the data. The ratios are medians over three or five rounds in
which the three took turns; more than 1 means that packing is faster. {len(rows) - slower} of the {len(rows)} families
measured are faster packed than padded; {len(HYBRIDS) - len(rows)} families were not measured.

| family | hidden size | packed | padded / packed | one by one / packed |
|---|---|---|---|---|
{table}
"""


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    kept = RESULTS / "hybrid_cost.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for family in sys.argv[1:] or HYBRIDS:
        found[family] = measure(family)
        print(family, {way: round(statistics.median(found[family][way]), 3) for way in WAYS}, flush=True)
        kept.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
        (RESULTS / "hybrid_cost.md").write_text(page(found))


if __name__ == "__main__":
    main()
