"""The examples for other trainers run, and each reaches the gradient of its samples one by one."""

import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

import packsched.torch
from examples import grpo_loop, lists, plain_loop, stock_trainer
from examples.small import make_model, make_samples
from packsched.torch import PackCollator, WindowBatchSampler
from rollout_sft.checks.leak_probe import LeakError

EXAMPLES = sorted(Path(lists.__file__).parent.glob("*.py"))


def test_no_example_is_longer_than_120_lines():
    assert len(EXAMPLES) >= 7
    assert {path.name: n for path in EXAMPLES if (n := len(path.read_text().splitlines())) > 120} == {}


def test_lists_of_any_framework_give_the_unpacked_gradient():
    assert lists.main() < 1e-12


def test_the_plain_loop_gives_the_unpacked_gradient():
    apart, forwards = plain_loop.main()
    assert apart < 1e-12
    assert forwards[0] == 3, "one micro-step of four is idle, and not run"


def test_completions_packed_per_window_give_the_unpacked_gradient():
    apart, forwards = grpo_loop.main(steps=1)
    assert apart < 1e-12
    assert forwards[0] < grpo_loop.MICRO_STEPS


@pytest.fixture(scope="module")
def stock_run():
    """What the example returns, and the packs of each epoch, the first of which is only looked at."""
    epochs = []

    def plan(sampler, plan_epoch=WindowBatchSampler.__iter__):
        epochs.append(list(plan_epoch(sampler)))
        return iter(epochs[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowBatchSampler, "__iter__", plan)
        apart, steps = stock_trainer.main()
    return apart, steps, epochs[1:]


def test_the_stock_trainer_gives_the_unpacked_gradient(stock_run):
    apart, steps, epochs = stock_run
    assert apart < 1e-12
    assert steps == 2 * 5, "72 samples in windows of 16, twice"
    assert [] in epochs[0][:4], "the window has an idle micro-step"


def test_the_stock_trainer_plans_each_epoch_anew(stock_run):
    first, second = stock_run[2]
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(72))


class StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def test_a_resumed_stock_trainer_trains_the_windows_that_were_left(tmp_path):
    def weights(folder, steps, resume=None):
        args = TrainingArguments(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=2,
            save_steps=7,
            learning_rate=1e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        model = make_model()
        trainer = stock_trainer.PackedTrainer(
            model=model,
            args=args,
            train_dataset=make_samples(72),
            data_collator=PackCollator(),
            callbacks=[StopAfter(steps)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = weights("whole", 10)
    weights("stopped", 7)  # in the second epoch, whose plan is another one
    assert torch.equal(weights("stopped", 10, resume=True), whole)


def on_page(beginning):
    page = Path(lists.__file__).parents[1] / "docs" / "your_trainer.md"
    (code,) = re.findall(rf"```python\n({beginning}.*?)```", page.read_text(), re.DOTALL)
    return code


def test_the_probe_of_the_page_passes_and_sees_a_batch_that_leaks():
    model = make_model()
    exec(on_page("from rollout_sft"), {"model": model, "PackCollator": PackCollator})

    class Leaking(PackCollator):
        def __call__(self, segments):
            return super().__call__(segments) | {"use_cache": True}

    with pytest.raises(LeakError):
        exec(on_page("from rollout_sft"), {"model": model, "PackCollator": Leaking})


def test_the_loop_of_the_page_runs():
    model, samples, seen = make_model(), make_samples(40), []

    class Counting:
        @staticmethod
        def cross_entropy(logits, targets, **options):
            seen.append(int((targets != -100).sum()))
            return torch.nn.functional.cross_entropy(logits, targets, **options)

    names = {name: getattr(packsched.torch, name) for name in packsched.torch.__all__}
    names |= {"DataLoader": DataLoader, "samples": samples, "lengths": [len(s["input_ids"]) for s in samples]}
    names |= {"rank": 0, "ranks": 1, "epochs": 2, "ddp_model": model, "device": model.device, "torch": torch}
    exec(on_page("def loss_sum"), names | {"F": Counting, "optimizer": torch.optim.SGD(model.parameters())})
    each = sum(len(s["input_ids"]) - 3 for s in samples)
    assert len(seen) == 2 * 2, "a window of 32 samples and one of 8, twice, and each fits one pack of eight"
    assert sum(seen) == 2 * each
