"""packsched under TRL's `GRPOTrainer`: a window's completions are divided and packed by their lengths.

    python -m examples.trl_grpo

TRL cuts the generated completions into equal slices and pads each. Here one plan divides them into micro-steps of equal
token counts, and each runs as a row without padding. TRL's API offers no place for that, so two private methods of
TRL 1.16 are overridden. The loss has to be one that divides by the window's tokens (`dapo`, the default; `cispo`,
`vespo`), since the others average over a micro-step and would change with its contents. No micro-step may be empty, so
the objective is `balanced`. The gradient of the first step is compared with that of TRL's own trainer.
"""

import tempfile

import datasets
import torch
from trl import GRPOConfig, GRPOTrainer

from examples.digits.tokenizer import build_digits_tokenizer
from examples.small import difference, make_model
from examples.stock_trainer import Watch
from packsched import plan_window
from packsched.torch import PackCollator


class PackedGRPOTrainer(GRPOTrainer):
    """Packs the completions of a window."""

    packing_length = 384
    collate = PackCollator()

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:  # generated just now
            self._buffered_inputs = self._plan(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _plan(self, slices: list[dict]) -> list[dict]:
        """Divides the rows of all slices anew, by length."""
        whole = {n: torch.cat([s[n] for s in slices]) if v.ndim else v for n, v in slices[0].items()}
        lengths = (whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)).tolist()
        plan = plan_window(lengths, self.packing_length, len(slices), objective="balanced")
        return [{n: v[list(pack)] if v.ndim else v for n, v in whole.items()} for pack in plan.packs]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
        """Runs the rows as one pack; returns what TRL's method returns."""
        real = attention_mask.bool()
        labels = input_ids.clone()
        labels[:, :-logits_to_keep] = -100
        rows = zip(input_ids, labels, real, strict=True)
        batch = self.collate([{"input_ids": ids[own], "labels": label[own]} for ids, label, own in rows])
        outputs = model(**batch, fused_lm_head=True)

        def unpacked(values):
            spread = torch.zeros(input_ids.shape, dtype=values.dtype, device=values.device)
            spread[real] = torch.nn.functional.pad(values[0], (1, 0))  # nothing predicts the first token
            return spread[:, -logits_to_keep:]

        return unpacked(outputs.log_probs), unpacked(outputs.entropy), None


def first_gradient(trainer_class: type[GRPOTrainer]) -> tuple[torch.Tensor, list[int]]:
    """Trains one optimizer step; returns its gradient and the completions of each micro-step."""
    watch = Watch()
    prompts = ["<row> 8 4", "<row> 0 4 12 16", "<row> 16", "<row> 24 4 8"]
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_generations=4,
            max_completion_length=100,
            max_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = trainer_class(
            model=make_model(),
            args=args,
            reward_funcs=lambda completion_ids, **_: [float(ids[0] % 5 + len(ids) % 3) for ids in completion_ids],
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=build_digits_tokenizer(),
            callbacks=[watch],
        )
        trainer.train()
    return watch.gradient, [len(inputs["completion_ids"]) for inputs in trainer._buffered_inputs]


def main() -> tuple[float, list[int]]:
    """Trains with both trainers; returns the difference of the gradients, and the completions per micro-step."""
    expected, equal = first_gradient(GRPOTrainer)
    gradient, planned = first_gradient(PackedGRPOTrainer)
    apart = difference(gradient, expected)
    print(f"completions per micro-step: {equal} with TRL, {planned} packed")
    print(f"relative difference of the gradients: {apart:.1e}")
    assert apart < 1e-6, apart  # TRL computes its loss in float32
    return apart, planned


if __name__ == "__main__":
    main()
