"""One function prepares every forward: what the leak probe tests is what is trained and compared."""

import pytest
import torch
from transformers import Qwen3ForCausalLM

from rollout_sft.model.attention import VARLEN, choose_attention
from rollout_sft.model.forward import forward_names, prepare_forward
from tests.rollout_sft.checks.test_leak_probe import model_of
from tests.tiny import tiny_config


class Narrow(Qwen3ForCausalLM):
    """Takes neither `cu_seq_lens_q` nor `logits_to_keep`."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


def kinds(kwargs):
    """Name, type, dtype and number of dimensions of each keyword argument."""
    tensors = {n: (v.dtype, v.ndim) for n, v in kwargs.items() if isinstance(v, torch.Tensor)}
    return {**{n: v if isinstance(v, bool) else type(v) for n, v in kwargs.items()}, **tensors}


def record_forwards(model):
    """The kinds of arguments of each forward, without gradients (`probe`) and with them (`training`)."""
    seen = {"probe": [], "training": []}

    def before(module, args, kwargs):
        assert not args
        seen["training" if torch.is_grad_enabled() else "probe"].append(kinds(kwargs))

    model.register_forward_pre_hook(before, with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("kind", "attention", "names"),
    [
        (Qwen3ForCausalLM, "varlen", {"cu_seq_lens_q", "attention_mask", "logits_to_keep"}),
        (Qwen3ForCausalLM, "model", {"cu_seq_lens_q", "logits_to_keep"}),
        (Narrow, "auto", set()),
    ],
)
def test_the_probe_passes_what_training_and_equivalence_pass(make_trainer, tokenizer, kind, attention, names):
    model = kind(tiny_config(tokenizer)).double()
    trainer = make_trainer(
        model=model,
        attention=attention,
        reference_fraction=1.0,
        validate_schedule="first_window",
        post_rollout_pack_scope="window",
    )
    seen = record_forwards(model)
    trainer.train()
    packed = [given for given in seen["training"] if "position_ids" in given]
    probed = [given for given in seen["probe"] if "position_ids" in given]
    plain = [given for given in seen["probe"] if "position_ids" not in given]
    assert len(probed) >= 2
    assert plain
    kept = {"logits_to_keep"} & names
    assert all({"input_ids", "use_cache"} <= set(p) <= {"input_ids", "use_cache", *kept} for p in plain), (
        "as called alone"
    )
    assert len(packed) > 2, "the packs of the window, compared and then trained"
    assert all(given == probed[0] for given in [*probed, *packed])
    common = {"input_ids", "position_ids", "use_cache"}
    assert common | names <= set(seen["probe"][0])
    if kind is Narrow:
        assert set(seen["probe"][0]) == common
    alone = [given for given in seen["training"] if "position_ids" not in given]
    assert len(alone) == 9, "each segment alone, as a plain call sees it"
    assert all(set(given) == {"input_ids", "attention_mask", "use_cache"} for given in alone)


def test_what_a_forward_does_not_take_is_left_out_before_packs_are_marked(tokenizer):
    model = Narrow(tiny_config(tokenizer))
    choose_attention(model, "varlen", device=torch.device("cpu"))
    assert model.config._attn_implementation == VARLEN
    given = {"input_ids": torch.zeros((1, 4), dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 4])}
    assert set(prepare_forward(model, given)) == {"input_ids"}, "a mark without borders would be refused"


def test_the_names_of_a_forward_are_those_of_the_model_inside_its_wrappers(tokenizer):
    model = Narrow(tiny_config(tokenizer))
    assert forward_names(model) == {"input_ids", "attention_mask", "position_ids", "use_cache"}
    assert forward_names(torch.compile(model, backend="eager")) == forward_names(model)
    assert forward_names(model_of("llama")) is None, "it takes anything"
