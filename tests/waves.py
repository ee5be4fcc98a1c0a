"""A backend that streams scripted responses, and trainers whose windows are trained in waves."""

import hashlib
import random
import threading
from contextlib import nullcontext

import torch
from torch.utils.data import Dataset
from transformers import Qwen3ForCausalLM, TrainerCallback, set_seed

from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import Rollout, RolloutSFTTrainer
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target
from tests.hybrids import float64_throughout
from tests.tiny import shard, tiny_arguments, tiny_config

CAP = 96


def response(seed, cap=CAP):
    """Heavy-tailed: half of the responses have at most 8 tokens, one of 25 reaches the cap."""
    rng = random.Random(seed)
    length = min(cap, max(1, int(rng.lognormvariate(2.1, 1.3))))
    return [rng.randrange(20, 60) for _ in range(length)], length == cap


class Stream:
    """Responses that grow in a thread, in the order that `order` shuffles."""

    def __init__(self, backend, requests):
        self.backend, self.answers = backend, [response(r.seed) for r in requests]
        self.arrived, self.ended, self.returned = [0] * len(requests), set(), set()
        self.closed, self.moved = False, threading.Condition()
        self.rng = random.Random(backend.order)
        self.thread = threading.Thread(target=self._generate, daemon=True)
        self.thread.start()

    def _generate(self):
        running = list(range(len(self.answers)))
        while running and not self.closed:
            i = self.rng.choice(running)
            with self.moved:
                self.arrived[i] += self.rng.randint(1, 9)
                if self.arrived[i] >= len(self.answers[i][0]):
                    running.remove(i)
                    self.ended.add(i)
                self.moved.notify_all()

    def wait(self, tokens):
        self.backend.waits.append(tokens)
        if self.backend.fails_in_wave == len(self.backend.waits):
            raise ConnectionError("the server is gone")

        def passed(i):
            return i in self.ended or (tokens is not None and self.arrived[i] > tokens)

        with self.moved:
            assert self.moved.wait_for(lambda: all(map(passed, range(len(self.answers)))), timeout=30)
        found = {
            i: Rollout(response_ids=ids, truncated=cut)
            for i, (ids, cut) in enumerate(self.answers)
            if (tokens is None or len(ids) <= tokens) and i not in self.returned
        }
        self.returned |= set(found)
        return found

    def close(self):
        self.closed = True
        self.thread.join()


class ScriptedBackend:
    """Streams responses that depend on the seed of the request alone."""

    def __init__(self, order=0, fails_in_wave=None):
        self.counters, self.order, self.fails_in_wave = {}, order, fails_in_wave
        self.waits, self.streams = [], []

    def generate(self, requests):
        return [Rollout(response_ids=ids, truncated=cut) for ids, cut in (response(r.seed) for r in requests)]

    def begin(self, requests):
        self.streams.append(Stream(self, requests))
        return self.streams[-1]


class Together:
    """The same responses without a stream."""

    def __init__(self):
        self.counters = {}

    generate = ScriptedBackend.generate


class Echo:
    """Trains the prompt and the response, with weights that no power of two divides."""

    def __init__(self, shorter=1):
        self.shorter = shorter

    def build(self, sample, rollout):
        return self._target(sample, rollout.response_ids[:: self.shorter])

    def build_reference(self, sample):
        return self._target(sample, [20, 21, 22])

    def _target(self, sample, answer):
        ids = [*sample["prompt_ids"], *answer, 1]
        weights = (
            [0.0] * (len(sample["prompt_ids"]) - 1) + [0.7 + 0.1 * (i % 5) for i in range(len(answer) + 1)] + [0.0]
        )
        return Target(segment=Segment.from_lists(ids, [*ids[1:], 0], weights, sample_id=sample["id"]), counters={})

    def score(self, sample, rollout):
        return {}


class Prompts(Dataset):
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        rng = random.Random(1000 + index)
        return {"id": f"p{index}", "prompt_ids": [rng.randrange(20, 60) for _ in range(rng.randint(3, 9))]}


class Catch(TrainerCallback):
    """Keeps the whole gradient of every optimizer step and a hash of the weights after it, and counts micro-steps."""

    def __init__(self):
        self.gradients, self.hashes, self.micro_steps = [], [], []

    def on_step_begin(self, *args, **kwargs):
        self.micro_steps.append(1)

    def on_substep_end(self, *args, **kwargs):
        self.micro_steps[-1] += 1

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([whole(p.grad).reshape(-1).clone() for p in model.parameters()]))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.hashes.append(hashlib.sha256(weights(model).view(torch.uint8).numpy().tobytes()).hexdigest())


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights(model):
    return torch.cat([whole(p.detach()).reshape(-1) for p in model.parameters()])


def wave_trainer(folder, waves, *, backend=None, builder=None, dtype=torch.float64, sharded=False, data=None, **more):
    """Windows of 5 x 4 samples a rank in packs of 128 tokens; `catch` and `backend` hang on the trainer."""
    tokenizer = build_digits_tokenizer()
    arguments = tiny_arguments(
        folder,
        **{
            "global_max_length": 128,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 5,
            "max_steps": 10,
            "learning_rate": 1e-3,
            "post_rollout_pack_scope": "window",
            "check_isolation": False,
            "decoding": {"max_new_tokens": CAP},
            "rollout_waves": waves,
            **more,
        },
    )
    set_seed(0)
    model = Qwen3ForCausalLM(tiny_config(tokenizer)).to(dtype)
    if sharded:
        model = shard(model, folder)
    catch = Catch()
    backend = backend or ScriptedBackend()
    trainer = RolloutSFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=data or Prompts(5 * 4 * 10 * arguments.world_size),
        rollout_backend=backend,
        target_builder=builder or Echo(),
        callbacks=[catch],
    )
    trainer.catch, trainer.backend = catch, backend
    return trainer


def train(folder, waves, **more):
    return run(wave_trainer(folder, waves, **more))


def run(trainer, checkpoint=None):
    """Trains; a float64 model computes its norms in float64 as well, or gradients would differ by 1e-7."""
    with float64_throughout() if trainer.model.dtype == torch.float64 else nullcontext():
        trainer.train(checkpoint)
    return trainer


def lines(trainer):
    """The lines of the log, one per step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
