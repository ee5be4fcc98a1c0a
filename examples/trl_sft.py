"""packsched under TRL's `SFTTrainer`, without padding and without its offline packing.

    python -m examples.trl_sft

For a data set with fixed lengths TRL's own `packing=True` (`bfd`) is as good: packsched gains nothing there but whole
optimizer steps of the same samples. It gains where you want the optimizer steps of the unpacked run: every step trains
`per_device_train_batch_size * gradient_accumulation_steps` samples, as without packing. The gradient of the first
window is compared with that of its samples one by one.
"""

import tempfile
from itertools import islice

import datasets
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from examples.digits.tokenizer import build_digits_tokenizer
from examples.small import difference, make_model, make_samples, unpacked_gradient
from examples.stock_trainer import Watch
from packsched.torch import PackCollator, WindowBatchSampler


class PackedSFTTrainer(SFTTrainer):
    """Trains packs that are planned over the whole accumulation window."""

    def make_sampler(self) -> WindowBatchSampler:
        return WindowBatchSampler(
            [len(ids) for ids in self.train_dataset["input_ids"]],
            packing_length=256,
            micro_steps=self.args.gradient_accumulation_steps,
            batch_size=self.args.per_device_train_batch_size,
            num_replicas=self.args.world_size,
            rank=self.args.process_index,
            seed=self.args.seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        sampler = self.make_sampler()
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        loader.set_epoch = sampler.set_epoch  # Trainer calls it before each epoch
        return loader


def main() -> tuple[float, int]:
    """Trains one epoch; returns the difference of the first gradient, and the number of optimizer steps."""
    watch, model, samples = Watch(), make_model(), make_samples(72)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            max_length=None,  # otherwise TRL cuts every sample at 1024 tokens
            dataset_kwargs={"skip_prepare_dataset": True},  # the samples have input_ids and labels already
            gradient_checkpointing=False,
            bf16=False,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = PackedSFTTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(samples),
            data_collator=PackCollator(),
            processing_class=build_digits_tokenizer(),
            callbacks=[watch],
        )
        window = [i for pack in islice(trainer.make_sampler(), 4) for i in pack]
        expected = unpacked_gradient(model, [samples[i] for i in window])
        trainer.train()
    apart = difference(watch.gradient, expected)
    print(f"{watch.steps} optimizer steps; relative difference of the gradients: {apart:.1e}")
    assert apart < 1e-6, apart  # TRL computes its loss in float32
    return apart, watch.steps


if __name__ == "__main__":
    main()
