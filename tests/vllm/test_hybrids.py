"""Recurrent layers and experts in a real engine on a CPU, against Hugging Face's `generate`, token for token."""

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.vllm.backend import VLLMBackend
from rollout_sft.rollouts.vllm.colocated import ColocatedEngine
from rollout_sft.rollouts.vllm.cpu import COMPARED
from tests.tiny_families import tiny_config
from tests.vllm.conftest import EOS, LONGEST, PAD, PROMPTS, TOKENIZER, Live, by_hf, colocate_config, requests

WIDER = {
    "granitemoehybrid": {"mamba_d_head": 32, "intermediate_size": 64},
    "qwen3_moe": {"moe_intermediate_size": 64},
}
"""What the smallest configuration needs besides; vLLM's experts on a CPU take multiples of 32."""


@pytest.fixture
def start():
    """Makes a tiny model of a family and an engine for it, and closes the engine in the end."""
    engines = []

    def make(family):
        set_seed(0)
        shape = {"hidden_size": 64, "head_dim": 32, "vocab_size": len(TOKENIZER), "max_position_embeddings": LONGEST}
        config = tiny_config(family, eos_token_id=EOS, pad_token_id=PAD, **shape, **WIDER.get(family, {}))
        live = Live(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
        engines.append(ColocatedEngine(colocate_config(), longest=LONGEST, dtype="float32"))
        return live, engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("family", [*COMPARED, "qwen3_moe"])
def test_greedy_rollouts_of_hybrids_and_experts_equal_hugging_face(start, family):
    live, engine = start(family)
    backend = VLLMBackend(engine, live.weights, Decoding(max_new_tokens=24), eos_token_ids=[EOS])
    before = [None] * len(PROMPTS)
    for _ in range(3):
        expected = by_hf(live.model)
        assert all(a != b for a, b in zip(before, expected, strict=True)), "the weights hardly changed"
        backend.sync()
        assert backend.generate(requests()) == expected
        assert backend.generate(requests()) == expected, "the second time from the prefix cache"
        before = expected
        live.change()


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_a_hybrid_that_vllm_gets_wrong_on_a_cpu_is_refused(start, family):
    live, engine = start(family)
    with pytest.raises(ValueError, match=rf"answers of {family} were not found .*rollout_backend: hf"):
        engine.load(live.weights)
