"""packsched under the stock Hugging Face `Trainer`: one method is overridden, and nothing else.

    python -m examples.stock_trainer
    torchrun --nproc-per-node 2 -m examples.stock_trainer

`Trainer` counts the supervised tokens of the window on all ranks and divides by them. An idle micro-step gets the
collator's dummy. The gradient of the first window is compared with that of its samples one by one.
"""

import os
import tempfile
from itertools import islice

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from examples.small import difference, flat_gradient, make_model, make_samples, unpacked_gradient
from packsched.torch import PackCollator, WindowBatchSampler


class PackedTrainer(Trainer):
    """Trains packs that are planned over the whole accumulation window."""

    def make_sampler(self, *, rank: int, ranks: int) -> WindowBatchSampler:
        return WindowBatchSampler(
            [len(sample["input_ids"]) for sample in self.train_dataset],
            packing_length=256,
            micro_steps=self.args.gradient_accumulation_steps,
            batch_size=self.args.per_device_train_batch_size,
            num_replicas=ranks,
            rank=rank,
            seed=self.args.seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        sampler = self.make_sampler(rank=self.args.process_index, ranks=self.args.world_size)
        # Not passed through accelerator.prepare, which would deal the packs to the ranks a second time.
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        loader.set_epoch = sampler.set_epoch  # Trainer calls it before each epoch
        return loader


class Watch(TrainerCallback):
    """Keeps the gradient of the first optimizer step, and counts the steps."""

    def __init__(self):
        self.gradient, self.steps = None, 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradient is None:
            self.gradient = flat_gradient(model)
        self.steps += 1


def main(trainer_class: type[Trainer] = PackedTrainer) -> tuple[float, int]:
    """Trains two epochs; returns the difference of the first gradient, and the number of optimizer steps."""
    watch, model, samples = Watch(), make_model(), make_samples(72)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=2,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo" if "RANK" in os.environ else None,
            remove_unused_columns=False,
        )
        trainer = trainer_class(
            model=model, args=args, train_dataset=samples, data_collator=PackCollator(), callbacks=[watch]
        )
        ranks = args.world_size
        window = [
            i for r in range(ranks) for pack in islice(trainer.make_sampler(rank=r, ranks=ranks), 4) for i in pack
        ]
        expected = unpacked_gradient(model, [samples[i] for i in window])
        trainer.train()
    apart = difference(watch.gradient, expected)
    print(f"{watch.steps} optimizer steps; relative difference of the gradients: {apart:.1e}")
    assert apart < 1e-12, apart
    return apart, watch.steps


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
