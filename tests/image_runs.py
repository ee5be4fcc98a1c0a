"""Trains a tiny image model on reference answers, and runs each segment alone through the model's own plain forward."""

import random

import torch
from transformers import TrainerCallback

from rollout_sft import RolloutSFTTrainer
from rollout_sft.inputs.choose import make_adapter
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target
from tests.tiny import tiny_arguments
from tests.tiny_images import END, IMAGE, QWEN_VL, SPECIAL, START, VOCABULARY, image_processor, image_tokenizer, picture

SIZES = [[(16, 24)], [], [(40, 8), (16, 16)], [(8, 16)], [], [(24, 16), (8, 24)], [], [(16, 40)], [(9, 30)]]
"""Heights and widths of the images of nine samples: none, one or two of different sizes."""

LONGEST = {"internvl": 120, "llava_onevision": 260, "smolvlm": 120, "mistral3": 90}


def make_samples(adapter, sizes=SIZES, seed=0):
    """Prompts with images in the middle, and answers of different lengths."""
    draw = random.Random(seed)
    words = range(len(SPECIAL), VOCABULARY)
    samples = []
    for number, row in enumerate(sizes):
        images = tuple(picture(*size, seed=100 * number + i) for i, size in enumerate(row))
        prompt = [*draw.choices(words, k=draw.randrange(2, 6)), *[t for _ in images for t in (START, IMAGE, END)], 11]
        samples.append(
            {
                "id": f"s{number}",
                "prompt_ids": adapter.expand(prompt, images),
                "images": images,
                "answer": draw.choices(words, k=draw.randrange(2, 12)),
            }
        )
    return samples


class AnswerBuilder:
    """Supervises a sample's answer; leaves the images to the trainer. Keeps the segments that it made."""

    def __init__(self):
        self.segments = {}

    def build_reference(self, sample):
        ids = [*sample["prompt_ids"], *sample["answer"]]
        begin = len(sample["prompt_ids"]) - 1
        weights = [float(begin <= t < len(ids) - 1) * (1 + t % 3) for t in range(len(ids))]
        segment = Segment.from_lists(ids, [*ids[1:], 0], weights, sample_id=sample["id"])
        self.segments[sample["id"]] = segment
        return Target(segment=segment, counters={})

    def build(self, sample, rollout):
        return self.build_reference(sample)

    def score(self, sample, rollout):
        return {}


def adapter_of(family, model):
    return make_adapter(model.config, image_tokenizer(), image_processor(family))


def image_trainer(family, model, folder, *, samples=None, callbacks=(), **overrides):
    """A trainer on windows of 3 x 3 samples, without rollouts; `samples` and `builder` hang on it."""
    samples = make_samples(adapter_of(family, model)) if samples is None else samples
    builder = AnswerBuilder()
    trainer = RolloutSFTTrainer(
        model=model,
        args=tiny_arguments(
            folder, **{"global_max_length": LONGEST.get(family, 64), "reference_fraction": 1.0, **overrides}
        ),
        processing_class=image_tokenizer(),
        image_processor=image_processor(family),
        train_dataset=samples,
        target_builder=builder,
        callbacks=list(callbacks),
    )
    trainer.samples, trainer.builder = samples, builder
    return trainer


def plain_logits(family, model, ids, images):
    """The logits of one segment as the model itself makes them: no code of ours but the image processor's call."""
    if not images:
        return model(input_ids=ids[None]).logits[0]
    pixels = [image.pixels() for image in images]
    given = {"internvl": {"crop_to_patches": True}, "mistral3": {"patch_size": 8}}.get(family, {})
    media = image_processor(family)(images=[pixels] if family == "smolvlm" else pixels, return_tensors="pt", **given)
    media.pop("num_patches", None)
    if family in QWEN_VL:
        media["mm_token_type_ids"] = (ids == IMAGE).int()[None]
    return model(input_ids=ids[None], **media).logits[0]


def one_by_one(family, model, segments):
    """Adds the gradient of each segment alone to the parameters; segments are pairs with their images."""
    total = sum(float(s.weights.sum()) for s, _ in segments)
    for s, images in segments:
        log_probs = torch.log_softmax(plain_logits(family, model, s.input_ids, images), dim=-1)
        (-(s.weights.double() * log_probs[torch.arange(len(s.targets)), s.targets]).sum() / total).backward()
    return flat_gradient(model)


def flat_gradient(model):
    """Of all parameters, whole where they are sharded; llava_onevision does not use the last layers of its tower."""
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    flat = [
        torch.zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(model.parameters(), whole, strict=True)
    ]
    return torch.cat([g.detach().double().clone() for g in flat])


def in_tower(model):
    """Which elements of the flat gradient belong to the vision tower and what joins it to the text."""
    text = ("language_model", "text_model", "lm_head")
    return torch.cat([torch.full((p.numel(),), not any(t in n for t in text)) for n, p in model.named_parameters()])


class Catch(TrainerCallback):
    """Keeps the gradient of the last optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = flat_gradient(getattr(model, "module", model))
