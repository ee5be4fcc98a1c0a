"""What `end_rollouts` saves with a model of which half of the responses loop, and that what is trained stays the same.

    python -m benchmarks.end_rollouts [--engine hf colocate server] [--write FILE]

A small model learns to copy the objects of its prompt into an answer. Prompts that begin with one of two marks are
answered by a loop instead of the end of the list: `"3""3""3"...` as a description, or `4, 4, 4, ...` as a box. Takes
two minutes on one thread for each engine; those of vLLM run in the environment of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, set_seed

from benchmarks.served import server
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import Rollout, RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.rollouts.endings import Endings, make_endings
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.step.loss import weighted_loss
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

CAP = 1024
DECODING = Decoding(max_new_tokens=CAP, temperature=0.0)
PROMPTS = 32
STEPS = 500
LOOPS = {"<c01>": '"3"', "<c02>": "4, "}
"""What follows the last object of a prompt that begins with a mark; `<c00>` begins the others."""

TOKENIZER = build_digits_tokenizer()
BUILDER = ObjectsTargetBuilder(tokenizer=TOKENIZER, prefix_supervision="expert")


@dataclass(frozen=True)
class Task:
    """A prompt, the answer that it asks for, and the loop that the model learns instead of the answer's end."""

    sample: dict[str, Any]
    answer: list[int]


def make_task(rng: random.Random, *, loop: bool, longest_loop: int) -> Task:
    objects = []
    for _ in range(rng.randrange(1, 4)):
        x, y = 4 * rng.randrange(5), 4 * rng.randrange(5)
        box = [x, y, x + 4 * rng.randrange(1, 5), y + 4 * rng.randrange(1, 5)]
        objects.append({"desc": str(rng.randrange(10)), "bbox_2d": box})
    mark = rng.choice(sorted(LOOPS)) if loop else "<c00>"
    told = "".join(f'"{item["desc"]}"' + "<c03>".join(map(str, item["bbox_2d"])) for item in objects)
    text = json.dumps(objects)
    if loop:
        opened = '{"desc": ' if mark == "<c01>" else '{"desc": "3", "bbox_2d": ['
        text = text[:-1] + ", " + opened + LOOPS[mark] * (longest_loop // (1 if mark == "<c01>" else 2))
    prompt = encode(mark + told + "<ans>")
    return Task({"id": "t", "prompt_ids": prompt, "objects": objects}, encode(text))


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.unk_token_id not in ids, text
    return ids


def make_model() -> PreTrainedModel:
    """Trains the model. Loops of up to 96 tokens have no end token in them."""
    set_seed(0)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=2048,
        rope_theta=1e4,
        tie_word_embeddings=False,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    rng = random.Random(0)
    for step in range(STEPS):
        tasks = [make_task(rng, loop=i % 2 == 0, longest_loop=rng.randrange(24, 96)) for i in range(16)]
        loss = answer_loss(model, tasks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return model.eval()


def answer_loss(model: PreTrainedModel, tasks: list[Task]) -> Tensor:
    rows = []
    for task in tasks:
        looping = task.sample["prompt_ids"][0] in {encode(mark)[0] for mark in LOOPS}
        answer = task.answer if looping else [*task.answer, TOKENIZER.eos_token_id]
        rows.append((task.sample["prompt_ids"], answer))
    width = max(len(p) + len(a) for p, a in rows)
    ids = torch.tensor([p + a + [TOKENIZER.pad_token_id] * (width - len(p) - len(a)) for p, a in rows])
    labels = torch.full_like(ids, -100)
    for row, (p, a) in enumerate(rows):
        labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


Make = Callable[[Endings | None], Any]
"""Makes a backend that ends rollouts by a rule."""


@contextmanager
def hf_backends(model: PreTrainedModel) -> Iterator[Make]:
    def make(endings: Endings | None) -> HFBackend:
        return HFBackend(
            lambda: model,
            DECODING,
            eos_token_ids=[TOKENIZER.eos_token_id],
            pad_token_id=TOKENIZER.pad_token_id,
            batch_size=PROMPTS,
            endings=endings,
        )

    yield make


@contextmanager
def colocated_backends(model: PreTrainedModel) -> Iterator[Make]:
    from rollout_sft.rollouts.vllm.backend import VLLMBackend
    from rollout_sft.rollouts.vllm.colocated import ColocatedEngine

    config = VLLMConfig(engine_args={"kv_cache_memory_bytes": 256 << 20})
    engine, weights = ColocatedEngine(config, longest=CAP + 64, dtype="float32"), LiveWeights(lambda: model)
    engine.load(weights)
    yield lambda endings: VLLMBackend(
        engine, weights, DECODING, eos_token_ids=[TOKENIZER.eos_token_id], endings=endings
    )


@contextmanager
def served_backends(model: PreTrainedModel) -> Iterator[Make]:
    from rollout_sft.rollouts.vllm.served import ServedBackend
    from rollout_sft.rollouts.vllm.server import ServerEngine
    from rollout_sft.rollouts.vllm.weight_transfer import make_transfer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        with server(folder, max_model_len=CAP + 64) as url:
            config = VLLMConfig(mode="server", base_url=url)
            engine = ServerEngine(config, make_transfer(config, default_folder=folder / "sent"), show_progress=False)
            weights = LiveWeights(lambda: model)
            engine.load(weights)
            yield lambda endings: ServedBackend(
                engine, weights, DECODING, eos_token_ids=[TOKENIZER.eos_token_id], endings=endings
            )
            engine.close()


ENGINES = {"hf": hf_backends, "colocate": colocated_backends, "server": served_backends}


def gradient(model: PreTrainedModel, segments: list[Segment]) -> Tensor:
    model.zero_grad()
    for segment in segments:
        logits = model(input_ids=segment.input_ids[None], use_cache=False).logits[0]
        held = segment.weights > 0
        weighted_loss(logits[held], segment.targets[held], segment.weights[held]).backward()
    return torch.cat([p.grad.reshape(-1).clone() for p in model.parameters() if p.grad is not None])


def equal(a: Segment, b: Segment) -> bool:
    pairs = [(a.input_ids, b.input_ids), (a.targets, b.targets), (a.weights, b.weights)]
    pairs += [(a.indices[name], b.indices[name]) for name in a.indices]
    return a.indices.keys() == b.indices.keys() and all(torch.equal(x, y) for x, y in pairs)


def measure(engine: str, model: PreTrainedModel, make: Make) -> list[str]:
    """Generates with each setting three times, in turn; returns the table's lines."""
    rng = random.Random(1)
    tasks = [make_task(rng, loop=i % 2 == 0, longest_loop=24) for i in range(PROMPTS)]
    requests = [RolloutRequest(prompt_ids=task.sample["prompt_ids"], seed=i) for i, task in enumerate(tasks)]
    seconds: dict[str, list[float]] = {}
    rollouts: dict[str, list[Rollout]] = {}
    for _ in range(3):  # in turn, so that whatever else the machine does slows all of them
        for how in ("never", "closed", "looping"):
            backend = make(make_endings(how, BUILDER))
            start = time.perf_counter()
            rollouts[how] = backend.generate(requests)
            seconds.setdefault(how, []).append(time.perf_counter() - start)
    segments = {
        how: [BUILDER.build(task.sample, r).segment for task, r in zip(tasks, made, strict=True)]
        for how, made in rollouts.items()
    }
    whole = gradient(model, segments["never"])
    rule = make_endings("looping", BUILDER)
    assert rule is not None
    assert rollouts["looping"] == [rule.cut(rollout) for rollout in rollouts["never"]]
    lines = []
    for how, made in rollouts.items():
        same = sum(equal(a, b) for a, b in zip(segments["never"], segments[how], strict=True))
        bits = torch.equal(whole, gradient(model, segments[how]))
        median = sorted(seconds[how])[1]
        f1 = [BUILDER.score(task.sample, r)["rollout/f1"] for task, r in zip(tasks, made, strict=True)]
        cells = [
            engine,
            f"`{how}`",
            f"{median:.2f}",
            f"{sorted(seconds['never'])[1] / median:.1f}",
            f"{sum(len(r.response_ids) for r in made) / PROMPTS:.0f}",
            f"{sum(len(r.response_ids) == CAP for r in made)}",
            f"{sum(r.ended for r in made)}",
            f"{sum(hits for hits, _ in f1) / sum(all_of_them for _, all_of_them in f1):.3f}",
            f"{same} of {PROMPTS}",
            "the same bits" if bits else "DIFFERENT",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


HEADER = """\
| engine | `end_rollouts` | seconds | times faster | tokens | at the limit | ended | F1 | equal segments | gradient |
|---|---|--:|--:|--:|--:|--:|--:|--:|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=list(ENGINES), nargs="+", default=["hf"])
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, lines = make_model(), [HEADER]
    for engine in given.engine:
        with ENGINES[engine](model) as make:
            lines += measure(engine, model, make)
        print("\n".join(lines), flush=True)
    text = "\n".join(lines) + "\n"
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
