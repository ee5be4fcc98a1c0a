"""Generates rollouts with Hugging Face's `generate` on the live model.

Requests are sorted by prompt length, left-padded and generated in chunks. Hybrid models mask the padding in their
recurrent layers; a model that cannot (RWKV) generates one prompt at a time. Where the length of a row changes how all
rows are computed (`dynamic` and `longrope` frequencies, Llama 4's query scale), rows that could differ from the row
alone share a chunk only with rows of the same length. Every request samples with a separate
generator, so a response does not depend on its neighbours in the batch (up to the last bits of the logits).
With `end_rollouts` the host reads the tokens every 16 steps; rows that have ended are padded until the batch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.layer_kinds import counted_in_row, padding_enters_state
from rollout_sft.model.rotary import forget_earlier_rows, frequency_borders, rotary_by_row
from rollout_sft.model.wrappers import base_model, evaluation_mode
from rollout_sft.ranks.distributed import entangled, is_sharded, together
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout, RolloutRequest, check_prompts
from rollout_sft.rollouts.endings import CHECK_EVERY, Endings, Watch, ended
from rollout_sft.rollouts.sampling import sampling_processors


class HFBackend:
    """
    Generates with the model that is being trained.

    Args:
        model (`Callable[[], PreTrainedModel]`):
            Returns the unwrapped live model; called at each use, since trainers wrap it late.
        decoding (`Decoding`):
            How to sample.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a response; at least one.
        pad_token_id (`int`):
            Pads prompts on the left; it is masked out.
        batch_size (`int`):
            Prompts generated together.
        inputs (`InputAdapter`, *optional*):
            Makes what the model reads besides token ids; nothing for text.
        endings (`Endings`, *optional*):
            Where responses end early; nowhere when not given.
    """

    def __init__(
        self,
        model: Callable[[], PreTrainedModel],
        decoding: Decoding,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int,
        inputs: InputAdapter | None = None,
        endings: Endings | None = None,
    ):
        if not eos_token_ids:
            raise ValueError("HFBackend needs at least one end token: set tokenizer.eos_token.")
        self._model = model
        self._decoding = decoding
        self._eos = [int(t) for t in eos_token_ids]
        self._pad = int(pad_token_id)
        self._batch_size = batch_size
        self._inputs = inputs or TextInputs()
        self._endings = endings
        self.counters: Counters = {}
        """Counters of the last call: `rollout/padding`, the positions computed for padding over all positions."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """
        Returns one [`Rollout`] per request, in the order of the requests; leaves the model as it found it.

        Where the weights are sharded every forward is a collective: all ranks generate the same number of chunks,
        each for as long as the slowest rank needs, and every chunk of an image model holds an image.
        """
        model = self._model()
        sharded = is_sharded(model)
        if not requests and not sharded:  # a window of references
            self.counters = {"rollout/padding": (0.0, 0.0)}
            return []
        if sharded:
            chunks, counts = together(lambda: self._chunks(requests), share=len)
            idle = max(counts) - len(chunks)
        else:
            chunks, idle = self._chunks(requests), 0
        rollouts: list[Rollout | None] = [None] * len(requests)
        with _generating(model), _media_inside_forward(model, sharded), entangled(sharded):
            for chunk in chunks:
                answers = self._generate_chunk(model, [requests[i] for i in chunk], synced=sharded)
                for i, rollout in zip(chunk, answers, strict=True):
                    rollouts[i] = rollout
            for _ in range(idle):
                self._generate_chunk(model, [self._nobody()], synced=True, max_new_tokens=1)
        answered = [r for r in rollouts if r is not None]
        self.counters = {"rollout/padding": _padding(requests, answered, chunks)}
        return answered

    def _chunks(self, requests: Sequence[RolloutRequest]) -> list[list[int]]:
        """Indices of the requests that are generated together, shortest prompts first."""
        check_prompts(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
        # RWKV ignores masks, and its cached steps mix up the rows of a batch even where no row is padded.
        size = 1 if padding_enters_state(self._model()) else self._batch_size
        kind = self._kinds_of_rows(requests)
        groups = [list(group) for _, group in groupby(order, key=kind)]
        return [group[start : start + size] for group in groups for start in range(0, len(group), size)]

    def _kinds_of_rows(self, requests: Sequence[RolloutRequest]) -> Callable[[int], Hashable]:
        """Tells by the index of a request which requests may share a chunk: those with equal results."""
        model = base_model(self._model())
        scaled, frequencies = counted_in_row(model), frequency_borders(model)
        border = min([limit - 1 for limit in scaled.values()] + list(frequencies.values()), default=None)
        # Behind its border `longrope` has one set of frequencies for every length.
        settled = max(frequencies.values()) if set(frequencies) == {"longrope"} and not scaled else None

        def kind(i: int) -> Hashable:
            length = len(requests[i].prompt_ids)
            if border is None or length + self._decoding.max_new_tokens <= border:
                return "short"
            if requests[i].images:  # rows with images have fewer positions than tokens
                return "alone", i
            return "long" if settled is not None and length > settled else length

        return kind

    def _nobody(self) -> RolloutRequest:
        """Makes the smallest request; with an image where the model has a vision tower."""
        dummy = self._inputs.dummy()
        if dummy is None:
            return RolloutRequest(prompt_ids=[self._pad], seed=0)
        return RolloutRequest(prompt_ids=dummy.input_ids.tolist(), seed=0, images=dummy.images)

    def _generate_chunk(
        self, model: PreTrainedModel, requests: list[RolloutRequest], *, synced: bool, max_new_tokens: int | None = None
    ) -> list[Rollout]:
        asked = len(requests)
        for rotary in rotary_by_row(base_model(model)).values():
            forget_earlier_rows(rotary)
        if synced and self._nobody().images and not any(request.images for request in requests):
            requests = [*requests, self._nobody()]  # the other ranks gather the weights of the vision tower
        width = max(len(r.prompt_ids) for r in requests)
        pads = [width - len(r.prompt_ids) for r in requests]
        input_ids = torch.tensor([[self._pad] * p + r.prompt_ids for p, r in zip(pads, requests, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (width - p) for p in pads])
        # Sampling is one of the processors, so `generate` itself is always greedy.
        config = GenerationConfig(
            max_new_tokens=max_new_tokens or self._decoding.max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=self._eos,
            pad_token_id=self._pad,
        )
        further = {
            **self._inputs.padded([torch.tensor(r.prompt_ids) for r in requests], width=width, left=True),
            **self._inputs.media([image for request in requests for image in request.images]),
        }
        watched = _EndRows(self._endings, len(requests), width, self._eos) if self._endings else None
        output: Tensor = model.generate(  # type: ignore[operator]  # a mixin's method, which mypy takes for a Tensor
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=sampling_processors(
                self._decoding, [r.seed for r in requests], pads=pads, banned=self._inputs.media_token_ids
            ),
            stopping_criteria=StoppingCriteriaList([watched] if watched else []),
            synced_gpus=synced,
            **{name: value.to(model.device) for name, value in further.items()},
        )
        rollouts = [self._cut(row) for row in output[:asked, width:].tolist()]
        return watched.cut(rollouts) if watched else rollouts

    def _cut(self, row: list[int]) -> Rollout:
        """Returns everything before the first end token; the padding behind it is not part of the response."""
        response = before_end(row, self._eos)
        return Rollout(response_ids=response, truncated=len(response) == len(row))


def _padding(
    requests: Sequence[RolloutRequest], rollouts: Sequence[Rollout], chunks: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Counts the positions that hold no token of a prompt or a response, and all positions."""
    prompts, responses = [len(r.prompt_ids) for r in requests], [len(r.response_ids) for r in rollouts]
    computed = sum(len(c) * (max(prompts[i] for i in c) + max(responses[i] for i in c)) for c in chunks)
    return float(computed - sum(prompts) - sum(responses)), float(computed)


class _EndRows(StoppingCriteria):
    """
    Ends the rows whose responses end early. Looks at them every [`CHECK_EVERY`] tokens: the host waits for the device
    at these alone, and what a row got too much is cut off afterwards.

    Args:
        endings (`Endings`):
            The rule.
        rows (`int`):
            Rows of the batch.
        width (`int`):
            Tokens of the padded prompts.
        end_ids (`Sequence[int]`):
            Tokens that end a response by themselves.
    """

    def __init__(self, endings: Endings, rows: int, width: int, end_ids: Sequence[int]):
        self._watches: list[Watch] = [endings.watch() for _ in range(rows)]
        self._responses: list[list[int]] = [[] for _ in range(rows)]
        self._under_way = set(range(rows))
        self._width = width
        self._end_ids = end_ids
        self._done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        if self._done is None:
            self._done = torch.zeros(len(self._watches), dtype=torch.bool, device=input_ids.device)
        if (input_ids.shape[1] - self._width) % CHECK_EVERY == 0 and self._under_way:
            for row, new in enumerate(input_ids[:, -CHECK_EVERY:].tolist()):
                if row in self._under_way:
                    self._look(row, new)
            ended_rows = [row not in self._under_way for row in range(len(self._watches))]
            self._done = torch.tensor(ended_rows, device=input_ids.device)
        return self._done

    def _look(self, row: int, new: list[int]) -> None:
        response = before_end(new, self._end_ids)
        self._responses[row] += response
        if len(response) < len(new) or self._watches[row](self._responses[row]) is not None:
            self._under_way.discard(row)

    def cut(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Ends each response where the rule says; the rows that came after the first few are nobody's."""
        ends = [watch(rollout.response_ids) for watch, rollout in zip(self._watches, rollouts, strict=False)]
        return [rollout if n is None else ended(rollout, n) for rollout, n in zip(rollouts, ends, strict=True)]


def before_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """Returns the tokens before the first end token; all of them where there is none."""
    return ids[: next((n for n, token in enumerate(ids) if token in end_ids), len(ids))]


@contextmanager
def _generating(model: PreTrainedModel) -> Iterator[None]:
    """Sets evaluation mode without gradients; restores modes, generation defaults and generators afterwards."""
    devices = [model.device] if model.device.type == "cuda" else []
    defaults = model.generation_config
    try:
        # `generate` fills missing values of a config from the model's defaults, sampling arguments among them.
        model.generation_config = GenerationConfig()
        with evaluation_mode(model), torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        model.generation_config = defaults


@contextmanager
def _media_inside_forward(model: Any, sharded: bool) -> Iterator[None]:
    """Lets a sharded model see images within its own forward, which gathers its weights; `generate` calls the tower."""
    if not sharded:
        yield
        return
    model._supports_mm_encoder_outputs = lambda: False
    try:
        yield
    finally:
        del model._supports_mm_encoder_outputs
