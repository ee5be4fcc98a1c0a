"""What the examples share: a small model, sequences of unpredictable length, and the gradient to reach."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 96


def make_model(dtype: torch.dtype = torch.float64) -> Qwen3ForCausalLM:
    """Makes the same small model on every call."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
    )
    return Qwen3ForCausalLM(config).to(dtype)


def make_samples(count: int) -> list[dict[str, list[int]]]:
    """Draws samples of 5 to 60 tokens, the first three of which are not supervised."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 61, (count,), generator=generator).tolist()
    ids = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return [{"input_ids": own, "labels": [-100] * 3 + own[3:]} for own in ids]


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    """Returns the gradients of all parameters as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def unpacked_gradient(model: Qwen3ForCausalLM, samples: list[dict[str, list[int]]]) -> torch.Tensor:
    """Returns the gradient of the samples' mean loss per supervised token: each sample alone, nothing packed."""
    model.zero_grad()
    total = sum(label != -100 for sample in samples for label in sample["labels"][1:])
    for sample in samples:
        ids, labels = (torch.tensor([sample[name]]) for name in ("input_ids", "labels"))
        model(input_ids=ids, labels=labels, num_items_in_batch=total).loss.backward()
    gradient = flat_gradient(model)
    model.zero_grad()
    return gradient


def difference(gradient: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the distance of two gradients, relative to the second."""
    return float((gradient - expected).norm() / expected.norm())
