"""The benchmark of step times runs where its GPU is not: the same code on a tiny shape, and what its report holds."""

import gc
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

import rollout_sft.trainer
from benchmarks.step_time import __main__ as step_time
from benchmarks.step_time import report
from benchmarks.step_time.variants import LIMIT, VARIANTS, Variant
from benchmarks.step_time.workloads import FixedRollouts, inputs_of, make_model, model_spec, workloads
from examples.digits.images import build_image_tokenizer
from rollout_sft.model.loading import load_config

CPU = torch.device("cpu")
COLUMNS = report.HEAD.splitlines()[0].count("|") - 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What `make bench-gpu` writes, from a dry run."""
    folder = tmp_path_factory.mktemp("results")
    command = "--preset gpu --device cpu --dry-run --rounds 2 --only at --out"
    gc.freeze()  # each of 40 runs collects garbage, and would look through all that was imported
    try:
        step_time.main([*command.split(), str(folder)])
    finally:
        gc.unfreeze()
    name = folder / "step_time_gpu_on_cpu_dry_run"
    return json.loads(name.with_suffix(".json").read_text()), name.with_suffix(".md").read_text()


def test_every_row_is_there_with_every_number(written):
    results, _ = written
    assert [table["ga"] for table in results["tables"]] == [4, 4, 4]
    assert results["tables"][2]["model"] == "tiny images"
    for table in results["tables"]:
        rows = {row["variant"]: row for row in table["rows"]}
        assert list(rows) == [*VARIANTS, LIMIT]
        for row in table["rows"]:
            assert len(row["all_seconds"]) == 2
            for number in ("seconds", "ratio", "tokens_per_second", "utilisation", "peak_bytes"):
                assert row[number] > 0, (row["variant"], number)
            assert row["tokens_per_second"] * row["seconds"] == pytest.approx(table["tokens"])
            assert (row["overhead"] is None) == (row["variant"] == LIMIT)
        assert rows["padded micro-batches"]["ratio"] == 1
        assert rows["padded micro-batches"]["forwards"] == rows["window, dense"]["forwards"] == 4
        assert rows["window, dense, skip"]["forwards"] == rows[LIMIT]["forwards"] < 4
        assert 0 < rows["window, dense"]["overhead"] < 1


def test_every_row_has_the_gradient_of_its_segments_one_by_one(written):
    results, _ = written
    for table in results["tables"]:
        for row in table["rows"]:
            if row["gradient"] is None:
                assert row["variant"] == LIMIT, "only the limit cuts segments"
            else:
                assert 0 < row["gradient"] < 0.02, (row["variant"], "bfloat16 rounds to 0.004")
    assert results["tables"][0]["rows"][-1]["gradient"] is not None, "one full pack cuts nothing"


def test_the_report_says_what_was_run_and_what_was_not_checked(written):
    results, text = written
    assert "--preset gpu --device cpu --dry-run --rounds 2" in results["about"]["command"]
    assert "A dry run" in text
    assert text.count(report.HEAD) == len(results["tables"])
    lines = [line for line in text.splitlines() if line.startswith(("| padded", "| packed", "| window", "| limit"))]
    assert len(lines) == 6 * len(results["tables"])
    assert {line.count("|") - 1 for line in lines} == {COLUMNS}
    assert text.count("gradient: not checked: no GPU.") == len(results["tables"])


@pytest.fixture
def variant():
    model = make_model("tiny", torch.float32, CPU)
    workload = workloads(64)[0]
    data = FixedRollouts(workload, 2, model.config.vocab_size)
    return Variant("window, dense, skip", workload, data, model, True)


class Device:
    """torch.cuda's switch, without a device; `seen` is how it stood when each part of a window ran."""

    def __init__(self, monkeypatch, variant):
        self.mode, self.seen = "default", {}
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.note("the clock"))
        variant.steps.clock.cuda = True
        trainer = variant.trainer
        for owner, name in (
            (trainer.window_builder, "collate"),
            (rollout_sft.trainer, "arrange_window"),
            (trainer, "compute_loss"),
            (trainer.accelerator, "backward"),
            (trainer, "floating_point_ops"),  # between the micro-steps
            (trainer, "create_optimizer"),
            (trainer, "_maybe_log_save_evaluate"),
        ):
            monkeypatch.setattr(owner, name, self.watched(name, getattr(owner, name)))

    def set(self, mode):
        self.mode = mode

    def note(self, part):
        self.seen.setdefault(part, set()).add(self.mode)

    def watched(self, name, work):
        def run(*args, **kwargs):
            self.note(name)
            return work(*args, **kwargs)

        return run


def test_waiting_is_an_error_only_from_collating_to_the_gradient(monkeypatch, variant):
    device = Device(monkeypatch, variant)
    assert step_time.waits(variant) == "none"
    must_not = {"collate", "arrange_window", "compute_loss", "backward", "floating_point_ops"}
    may = {"the clock", "create_optimizer", "_maybe_log_save_evaluate"}
    assert device.seen == {**{part: {"error"} for part in must_not}, **{part: {"default"} for part in may}}


def test_a_wait_is_reported_and_any_other_error_is_not_taken_for_one(monkeypatch, variant):
    device = Device(monkeypatch, variant)

    def fail(message):
        def work(*args, **kwargs):
            raise RuntimeError(message)

        monkeypatch.setattr(rollout_sft.trainer, "arrange_window", work)

    fail("called a synchronizing CUDA operation")
    assert step_time.waits(variant) == "at least one (called a synchronizing CUDA operation)"
    assert (device.mode, variant.steps.must_not_wait) == ("default", False)
    fail("CUDA out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        step_time.waits(variant)


def test_the_gpu_preset_is_what_the_issue_asks_for():
    plan = step_time.planned("gpu", dry_run=False)
    assert [shape for _, shape in plan] == ["0.6b"] * 4 + ["1.7b"] * 4 + ["2b images"]
    assert {(w.packing_length, w.gradient_accumulation_steps) for w, _ in plan} == {(16384, 16), (14000, 24)}


def test_the_images_of_the_gpu_preset_have_the_lengths_of_the_log():
    workload, shape = step_time.planned("gpu", dry_run=False)[-1]
    data = FixedRollouts(
        replace(workload, gradient_accumulation_steps=1, images=workload.images[:1]), 1, 151936, inputs_of(shape)
    )
    assert [data.adapter.image_tokens(i) for s in data.segments for i in s.images] == [2116] * 4
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(load_config(model_spec(shape), build_image_tokenizer()))
    assert 2.0e9 < sum(p.numel() for p in model.parameters()) < 2.3e9


def test_a_budget_leaves_out_what_would_not_end_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_time.time, "monotonic", lambda: now[0])
    budget = step_time.Budget(10)
    assert budget.has_room("small", 1.0), "nothing is known yet"
    now[0] = 120.0
    assert not budget.has_room("large", 5.0), "120 s are gone, and it takes five times as long"
    assert budget.has_room("middle", 2.0)
    now[0] = 180.0
    assert budget.has_room("large", 5.0), "the second went at four times the pace"
    assert budget.left_out == ["large"]
    assert step_time.Budget(None).has_room("anything", 1e30)


def test_the_work_of_the_gpu_preset_is_known_without_weights():
    (first, shape), *_ = step_time.planned("gpu", dry_run=False)
    assert 1e13 < step_time.work_of(first, shape, 2) < 1e17
