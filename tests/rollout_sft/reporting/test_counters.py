"""What builders and backends count never takes the place of the trainer's own numbers."""

import pytest

from examples.digits.data import DigitsDataset
from rollout_sft.reporting.metrics import check_counters
from rollout_sft.targets.base import Target


@pytest.mark.parametrize(
    "name", ["loss", "grad_norm", "epoch", "train_loss", "eval_f1", "packing/fill", "time/build_s"]
)
def test_a_name_of_the_trainer_is_refused(name):
    with pytest.raises(
        ValueError, match=rf"^the backend counts '{name}', a name that the trainer logs itself; .*'target/"
    ):
        check_counters({"rollout/f1": (1.0, 2.0), name: (1.0, 1.0)}, "the backend")


@pytest.mark.parametrize("pair", [1.0, (1.0,), (1.0, None), "ab", (1.0, 2.0, 3.0)])
def test_a_counter_is_a_pair_of_numbers(pair):
    with pytest.raises(ValueError, match=r"the backend counts 'right' as .*; a counter is a pair"):
        check_counters({"right": pair}, "the backend")


def counting(builder, name):
    """Lets a builder count `name`, or raise."""
    inner = builder.build_reference

    def build(sample, rollout=None):
        if name == "raises":
            raise KeyError("bbox")
        return Target(segment=inner(sample).segment, counters={name: (1.0, 1.0)})

    builder.build = builder.build_reference = build
    builder.score = lambda sample, rollout: {name: (1.0, 1.0)}


@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_a_builder_cannot_overwrite_the_loss(make_trainer, work):
    trainer = make_trainer(evaluation=DigitsDataset("eval", 2, seed=1, max_digits=2))
    counting(trainer.target_builder, "loss")
    with pytest.raises(ValueError, match="the target builder counts 'loss'"):
        getattr(trainer, work)()


def test_an_error_of_a_builder_names_sample_rank_and_step(make_trainer):
    trainer = make_trainer(reference_fraction=1.0)
    counting(trainer.target_builder, "raises")
    with pytest.raises(KeyError) as caught:
        trainer.train()
    assert caught.value.__notes__ == [
        "while the target builder tests.rollout_sft.conftest:Recorder had sample 'train-5-0' "
        "with id, prompt_ids, objects",
        "in step 1 on rank 0",
    ]


def test_an_error_while_an_answer_is_scored_names_its_sample(make_trainer):
    trainer = make_trainer(evaluation=DigitsDataset("eval", 2, seed=1, max_digits=2))
    trainer.target_builder.score = lambda sample, rollout: {}["gone"]
    with pytest.raises(KeyError) as caught:
        trainer.evaluate()
    assert "had sample 'eval-1-0' with id, prompt_ids, objects" in caught.value.__notes__[0]


def test_an_error_of_a_backend_names_samples_rank_and_step(make_trainer):
    trainer = make_trainer()

    def generate(requests):
        raise OSError("the engine went away")

    trainer.generation.train.generate = generate
    with pytest.raises(OSError, match="the engine went away") as caught:
        trainer.train()
    first, second = caught.value.__notes__
    assert first.startswith("while the rollout backend answered 9 samples: 'train-5-0', 'train-5-1', ")
    assert first.endswith(" and 1 more")
    assert second == "in step 1 on rank 0"
