"""packsched in a plain PyTorch loop: no Trainer, no rollout_sft.

    python examples/any_trainer.py

Sixteen sequences of unpredictable length, an accumulation window of four micro-steps, one plan for all of them. The
gradient is compared with that of the same sequences run one by one.
"""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from packsched import WindowBuffer

torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=64,
)
model = Qwen3ForCausalLM(config).double()
sequences = [torch.randint(64, (int(n),)) for n in torch.randint(5, 60, (16,))]
supervised = sum(len(s) - 1 for s in sequences)


def loss_of(packed, targets, position_ids):
    """Sum of the cross-entropy over the whole window's supervised tokens, so that the packing cannot change it."""
    logits = model(input_ids=packed[None], position_ids=position_ids[None], use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / supervised


def next_tokens(sequence):
    """What each position predicts; the last one predicts nothing, so no target crosses into the next segment."""
    return torch.cat([sequence[1:], torch.tensor([-100])])


window = WindowBuffer(packing_length=192, micro_steps=4)
for sequence in sequences:
    window.add(sequence, len(sequence))

packs = window.take_packs()
for number, pack in enumerate(packs, start=1):
    print(f"micro-step {number}: {len(pack.segments)} segments, {pack.layout.total} tokens, fill {pack.fill:.2f}")
    if not pack.segments:
        continue  # one process: nothing to run. With several ranks run a zero-weight dummy instead.
    packed = pack.layout.concat(pack.segments)
    targets = pack.layout.concat([next_tokens(s) for s in pack.segments])
    loss_of(packed, targets, torch.from_numpy(pack.layout.position_ids)).backward()
packed_gradient = torch.cat([p.grad.flatten() for p in model.parameters()])

model.zero_grad()
for sequence in sequences:
    loss_of(sequence, next_tokens(sequence), torch.arange(len(sequence))).backward()
gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
print(f"relative difference of the gradients: {(packed_gradient - gradient).norm() / gradient.norm():.1e}")
