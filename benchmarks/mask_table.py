"""Which model families keep packed segments apart: the leak probe over all that builds from a tiny configuration.

    python -m benchmarks.mask_table

Every causal language model of the installed transformers, times eager, sdpa and flex attention, each family in a
process of its own (some configurations take minutes or gigabytes). Writes `docs/masks.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[1]
ATTENTIONS = ("eager", "sdpa", "flex_attention")
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "num_layers": 2,
    "num_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}

SPECIAL = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "codestral_mamba": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
}
INTRODUCTION = """\
# Which models keep packed segments apart

Made by `python -m benchmarks.mask_table`: the start-up probe (`rollout_sft.isolation.check_isolation`) on every causal
language model of transformers that builds from a tiny configuration, float32, CPU, random weights. The number is how
far an untouched segment's logits moved when its neighbour was changed, relative to the largest logit; up to 1e-5 counts
as isolated. `refuses`: the forward raises, so nothing can leak silently. What holds for your model, attention and dtype
is measured again before the first step.
"""


def tiny_config(model_type: str):
    """The family's default configuration with every size it knows made small."""
    config = transformers.AutoConfig.for_model(model_type)
    text = config.get_text_config()
    known = {name: value for name, value in TINY.items() if hasattr(text, name) and getattr(text, name) is not None}
    if hasattr(text, "qk_rope_head_dim") and "head_dim" in known:
        known["head_dim"] = known["qk_rope_head_dim"]
    known.update(SPECIAL.get(model_type, {}))
    return transformers.AutoConfig.for_model(model_type, **known) if text is config else None


def probe(model_type: str) -> dict[str, str]:
    """Attention implementation -> verdict, for one family."""
    from rollout_sft.isolation import LeakError, check_isolation

    verdicts = {}
    for attention in ATTENTIONS:
        torch.manual_seed(0)
        try:
            config = tiny_config(model_type)
            if config is None:
                return {"all": "not built: the text model is nested in a multimodal configuration"}
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            size = sum(p.numel() for p in model.parameters())
            if size > 50_000_000:
                return {"all": f"not built: {size / 1e6:.0f} million parameters in spite of the small sizes"}
        except Exception as error:
            verdicts[attention] = f"not built: {_short(error)}"
            continue
        try:
            report = check_isolation(model, vocab_size=96)
            verdicts[attention] = f"isolated ({report.leak:.0e})" if report.leak else "isolated (0)"
        except LeakError as error:
            moved = str(error)
            verdicts[attention] = "**leaks** " + moved.partition("logits by ")[2].partition(" of")[0]
            if "behind another" in moved:
                verdicts[attention] = "**leaks** (positions)"
            if "blind" in moved:
                verdicts[attention] = "probe blind"
        except Exception as error:
            verdicts[attention] = f"refuses: {_short(error)}"
    return verdicts


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:70].replace("|", "/")


def in_own_process(model_type: str) -> dict[str, str]:
    """`probe` in a new interpreter with a time limit."""
    command = [sys.executable, "-m", "benchmarks.mask_table", "--only", model_type]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"all": "not built within 120 s"}
    if done.returncode:
        return {"all": "not built: " + (done.stderr.strip().splitlines() or ["killed"])[-1][:70].replace("|", "/")}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="probe one family and print JSON")
    args = parser.parse_args()
    if args.only:
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        print(json.dumps(probe(args.only)))
        return
    lines = []
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        verdicts = in_own_process(model_type)
        cells = [verdicts.get(a, verdicts.get("all", "")) for a in ATTENTIONS]
        lines.append(f"| {model_type} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    isolated = sum("isolated" in line for line in lines)
    leaking = sum("leaks" in line for line in lines)
    counts = (
        f"torch {torch.__version__}, transformers {transformers.__version__}: of {len(lines)} families {isolated} are "
        f"isolated in at least one attention and {leaking} leak in at least one."
    )
    table = "| family | eager | sdpa | flex_attention |\n|---|---|---|---|\n" + "\n".join(lines)
    (ROOT / "docs" / "masks.md").write_text(f"{INTRODUCTION}\n{counts}\n\n{table}\n")


if __name__ == "__main__":
    main()
