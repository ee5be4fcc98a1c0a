"""Feeds planned windows to a PyTorch trainer that is not `rollout_sft`: a data loader, a collator, a loop.

    WindowBatchSampler    a data set whose lengths are known -> exactly `micro_steps` packs per optimizer step and rank
    PackCollator          one pack -> one row without padding; an empty pack -> a dummy that trains nothing
    backward_window       the packs of one window on every rank -> the gradient of the window's mean loss
    supervised_tokens     one batch -> what it adds to the denominator of that mean

The stock `Trainer` and TRL's `SFTTrainer` need the first two and divide by the window's tokens themselves. Rollouts,
whose lengths are known only once they are made, need the last two and a `packsched.WindowBuffer`. The only module of
packsched that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Sampler

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import OversizedSegmentError, PackingError
from packsched.layout import PackLayout
from packsched.window import Objective, plan_window

__all__ = ["PackCollator", "WindowBatchSampler", "backward_window", "supervised_tokens"]

Batch = dict[str, Any]
IGNORED = -100
"""The label of a token that nothing is compared with."""


class WindowBatchSampler(Sampler[list[int]]):
    """Plans windows over a data set whose lengths are known, and gives each rank `micro_steps` packs per window.

    Use it as the `batch_sampler` of a `DataLoader`. A window holds `batch_size * micro_steps * num_replicas` samples,
    as many as an optimizer step without packing would train; the last one of an epoch holds the rest. All ranks make
    the same plan from the same lengths, so they need not talk to each other, and an infeasible window raises on every
    rank before its first forward. The packs are dealt round: the ranks' non-empty packs differ by one at most.

    Args:
        encoded_lens: Length of each sample in tokens.
        packing_length: The hard cap of a pack, in tokens.
        micro_steps: Packs per window and rank: `gradient_accumulation_steps`.
        batch_size: Samples per micro-step and rank, on average: `per_device_train_batch_size`.
        num_replicas: How many ranks train different data.
        rank: This process's rank among them.
        shuffle: Whether each epoch has an order of its own, drawn from `seed` and the epoch.
        seed: The same on every rank.
        objective: The objective of `plan_window`.

    Raises:
        OversizedSegmentError: A sample is longer than `packing_length`.
        PackingError: An argument is out of range.
        InfeasibleWindowError, UndecidedWindowError: While iterating: a window has no plan. Raise `packing_length` or
            `micro_steps`, or lower `batch_size`. To know before training, iterate over the epochs once.

    >>> sampler = WindowBatchSampler([6, 5, 3], packing_length=9, micro_steps=3, batch_size=1, shuffle=False)
    >>> list(sampler), len(sampler)
    ([[0, 2], [1], []], 3)
    """

    def __init__(
        self,
        encoded_lens: Sequence[SupportsIndex],
        *,
        packing_length: SupportsIndex,
        micro_steps: SupportsIndex,
        batch_size: SupportsIndex,
        num_replicas: SupportsIndex = 1,
        rank: SupportsIndex = 0,
        shuffle: bool = True,
        seed: int = 0,
        objective: Objective = "dense",
    ) -> None:
        self.encoded_lens = checked_lengths(encoded_lens)
        self.packing_length = checked_count("packing_length", packing_length)
        self.micro_steps = checked_count("micro_steps", micro_steps)
        self.num_replicas = checked_count("num_replicas", num_replicas)
        self.rank = checked_count("rank", rank, minimum=0)
        if self.rank >= self.num_replicas:
            raise PackingError(f"rank is {self.rank}, but there are {self.num_replicas} replicas, counted from 0.")
        self.window = checked_count("batch_size", batch_size) * self.micro_steps * self.num_replicas
        self.shuffle, self.seed, self.objective = shuffle, seed, objective
        self.epoch = 0
        plan_window([], self.packing_length, self.micro_steps, objective=objective)  # refuses a bad objective
        for index, length in enumerate(self.encoded_lens):
            if length > self.packing_length:
                raise OversizedSegmentError(index=index, encoded_len=length, packing_length=self.packing_length)

    def __len__(self) -> int:
        """Returns the packs per epoch and rank, empty ones included: a multiple of `micro_steps`."""
        return -(-len(self.encoded_lens) // self.window) * self.micro_steps

    def __iter__(self) -> Iterator[list[int]]:
        """Plans one window at a time and yields this rank's packs: lists of indices, empty ones last."""
        order = np.arange(len(self.encoded_lens))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for start in range(0, len(order), self.window):
            samples = order[start : start + self.window].tolist()
            plan = plan_window(
                [self.encoded_lens[sample] for sample in samples],
                self.packing_length,
                self.micro_steps * self.num_replicas,
                objective=self.objective,
            )
            for pack in plan.packs[self.rank :: self.num_replicas]:
                yield [samples[index] for index in pack]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, as `torch.utils.data.DistributedSampler.set_epoch` does."""
        self.epoch = epoch


class PackCollator:
    """Joins the segments of one pack into a row without padding, in the arguments of a transformers model.

    Use it as the `collate_fn` of a `DataLoader`, or call it with `pack.segments`. A model keeps the segments of the row
    apart only if it gets no `attention_mask`; `rollout_sft` has a probe that shows whether a model does.

    Args:
        dummy: The fields to pack, one value per token each, with the value that the one token of the dummy has. Other
            fields of the segments are left out. `input_ids` and, without supervision, `labels` when not given. A value
            with a dtype, such as `np.float64(0)`, gives its field that dtype. Otherwise tensors and arrays keep their
            own, integers in lists become int64 and floats in lists torch's default dtype.

    Raises:
        PackingError: `dummy` lacks `input_ids`, or has an `attention_mask`.

    >>> collate = PackCollator()
    >>> batch = collate([{"input_ids": [7, 8, 9], "labels": [7, 8, 9]}, {"input_ids": [5, 6], "labels": [5, 6]}])
    >>> batch["position_ids"], batch["labels"]
    (tensor([[0, 1, 2, 0, 1]]), tensor([[-100,    8,    9, -100,    6]]))
    >>> collate([])["labels"]
    tensor([[-100]])
    """

    def __init__(self, dummy: Mapping[str, float] | None = None) -> None:
        self.dummy = {"input_ids": 0, "labels": IGNORED} if dummy is None else dict(dummy)
        if "input_ids" not in self.dummy or "attention_mask" in self.dummy:
            raise PackingError(
                f"dummy has the fields {sorted(self.dummy)}; it needs input_ids, and an attention_mask would let the "
                "segments of a pack attend to each other."
            )

    def __call__(self, segments: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns the batch of one pack.

        Args:
            segments: Each maps the names of the fields to tensors, arrays or lists of one dimension, all as long as its
                `input_ids`.
                `labels` are those of transformers: where the token itself is, -100 where nothing is supervised.
                Nothing predicts a segment's first token, so its label becomes -100. No segments give the dummy.

        Returns:
            The fields in the shape `(1, tokens)`; `position_ids` and `seq_idx` in the same shape; `cu_seq_lens_q/k` of
            the shape `(segments + 1,)`, int32; `max_length_q/k` as integers; `use_cache=False`, because a cache makes
            models mix the segments.

        Raises:
            PackingError: A segment lacks a field, a field is not as long as `input_ids`, has another number of
                dimensions or values of another kind than the dummy's, or an `attention_mask` marks padding.
        """
        rows = segments or [{name: [value] for name, value in self.dummy.items()}]
        for index, row in enumerate(rows):
            missing = [name for name in self.dummy if name not in row]
            if missing:
                raise PackingError(
                    f"segment {index} has no {missing[0]!r}, only {sorted(row)}; see PackCollator(dummy=)."
                )
            padding = int((torch.as_tensor(row.get("attention_mask", 1)) == 0).sum())
            if padding:
                raise PackingError(
                    f"segment {index} has an attention_mask with {padding} zeros. A pack has no padding, and these "
                    "tokens would be trained: cut them off in every field, or tokenize without padding."
                )
        fields = {
            name: [_field(row[name], value, f"segment {index}: {name!r}") for index, row in enumerate(rows)]
            for name, value in self.dummy.items()
        }
        layout = PackLayout.from_lengths([len(ids) for ids in fields["input_ids"]])
        batch: Batch = {name: layout.concat(parts)[None] for name, parts in fields.items()}
        if "labels" in batch:
            batch["labels"][0, list(layout.offsets)] = IGNORED
        boundaries = torch.from_numpy(layout.cu_seqlens)
        return batch | {
            "position_ids": torch.from_numpy(layout.position_ids)[None],
            "seq_idx": torch.from_numpy(layout.segment_ids)[None],
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": layout.max_seqlen,
            "max_length_k": layout.max_seqlen,
            "use_cache": False,
        }


def _field(values: Any, dummy: Any, where: str) -> Tensor:
    """Returns one field of a segment as a tensor of one dimension and of the dtype that was asked for."""
    try:
        given = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PackingError(f"{where} cannot be read as a tensor: {error}") from None
    if given.ndim != 1:
        hint = "; a tokenizer with return_tensors='pt' adds a dimension: take [0]" if given.ndim == 2 else ""
        raise PackingError(
            f"{where} has the shape {tuple(given.shape)}; give one dimension, one value per token{hint}."
        )
    wanted = torch.as_tensor(dummy).dtype
    keeps_own = hasattr(values, "dtype") and not hasattr(dummy, "dtype")
    if keeps_own and (given.is_floating_point(), given.dtype == torch.bool) == (
        wanted.is_floating_point,
        wanted == torch.bool,
    ):
        return given
    if not torch.can_cast(given.dtype, wanted):
        raise PackingError(
            f"{where} holds {given.dtype} and the dummy {wanted}, which cannot hold these values. Give the dummy a "
            "value of their kind, such as 0.0."
        )
    return torch.as_tensor(values, dtype=wanted)  # from a list at once: by way of float32 digits would be lost


def supervised_tokens(batch: Mapping[str, Any]) -> int:
    """Returns the number of supervised tokens of a `PackCollator` batch: what a token mean divides by."""
    return int((batch["labels"] != IGNORED).sum())


def backward_window(
    model: nn.Module,
    batches: Sequence[Batch],
    loss_sum: Callable[[Batch], Tensor],
    *,
    weight: Callable[[Batch], float] = supervised_tokens,
) -> Tensor:
    """Runs the forwards and backwards of one window, safely on one process, under DDP and under FSDP.

    Leaves the gradient of (sum of all losses) / (sum of all weights) in the parameters, over the window and all ranks.
    So the gradient does not depend on which segments share a pack or a rank. Every rank runs as many forwards as the
    rank with the most packs that have weight: in the remaining ones it runs its batches without weight, so that no rank
    waits for another. What no rank needs is not run. The gradients are reduced once, in the last backward.

    Args:
        model: The model, wrapped or not.
        batches: The window on this rank, as many as on every other rank.
        loss_sum: Moves a batch to the device and runs the forward, through the wrapped model; returns the *sum* of the
            losses, a scalar that depends on the logits also where nothing is supervised.
        weight: What a batch adds to the denominator; where it is 0, `loss_sum` must be 0 as well.

    Returns:
        This rank's part of the window's mean loss, without a graph; the parts of all ranks add up to it.

    Raises:
        PackingError: On every rank together: the window has no weight, or a rank has too few batches.
    """
    weights = [float(weight(batch)) for batch in batches]
    filled = [batch for batch, its_weight in zip(batches, weights, strict=True) if its_weight]
    idle = [batch for batch, its_weight in zip(batches, weights, strict=True) if not its_weight]
    numbers = (sum(weights), len(filled), len(batches))
    totals, needed, given = zip(*_of_all_ranks(numbers, next(model.parameters()).device), strict=True)
    total, most = sum(totals), int(max(needed))
    if not total:
        raise PackingError("the window has no weight on any rank, so it has no mean loss; leave it out on every rank.")
    if min(given) < most:
        raise PackingError(
            f"the ranks have {[int(n) for n in given]} batches, but one of them needs {most} forwards; give every rank "
            "the same number: an empty pack gives the dummy of PackCollator."
        )
    runs = [*filled, *idle[: most - len(filled)]]
    part = torch.zeros((), device=next(model.parameters()).device)
    for number, batch in enumerate(runs, start=1):
        reduces = number == len(runs) or not hasattr(model, "no_sync")
        with nullcontext() if reduces else model.no_sync():  # type: ignore[operator]
            loss = loss_sum(batch) / total
            (loss * len(totals)).backward()  # ranks average their gradients
        part = part + loss.detach()
    return part


def _of_all_ranks(numbers: tuple[float, ...], device: torch.device) -> list[list[float]]:
    """Returns the numbers of every rank, in one collective."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.float64, device=device)
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, own)
    return [row.tolist() for row in gathered]
