"""Stands in for flash_attn.bert_padding: takes padding out of a rectangle, and puts it back."""

import torch.nn.functional as F


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    """Returns the tokens without padding, their places, the borders, the longest row and all lengths."""
    lens = attention_mask.sum(-1, dtype=attention_mask.new_zeros(0).int().dtype)
    indices = attention_mask.flatten().nonzero().flatten()
    borders = F.pad(lens.cumsum(0, dtype=lens.dtype), (1, 0))
    return hidden_states.flatten(0, 1)[indices], indices, borders, int(lens.max()), lens


def pad_input(hidden_states, indices, batch, seqlen):
    """Undoes `unpad_input`."""
    out = hidden_states.new_zeros((batch * seqlen, *hidden_states.shape[1:]))
    return out.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))
