"""Seconds per optimizer step on the same fixed rollouts, through the real trainer, from padded batches to the limit.

    OMP_NUM_THREADS=1 python -m benchmarks.step_time --preset cpu
    python -m benchmarks.step_time --preset gpu
    python -m benchmarks.step_time --preset gpu --minutes 8    leaves out what would not end in time
    python -m benchmarks.step_time --preset gpu --device cpu --dry-run    what the GPU will run, on a tiny shape
    python -m benchmarks.step_time --preset cpu --shape 110m --only "short rollouts, 1 at a time"
                                                  what scheduling and collating cost beside a larger model

The variants run in turns, round after round; a number is the median over the rounds, a ratio the median of the ratios
within a round. Each variant's gradient of the first window is compared with that of its segments one by one. The CPU is
measured in processor time, so that a busy machine changes little; a GPU by the wall clock, after synchronising.
Learning rate 0: the optimizer does its work, and every variant sees the same weights.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.step_time import report
from benchmarks.step_time.machine import VERSIONS, cpu_name
from benchmarks.step_time.variants import VARIANTS, Clock, Limit, Variant, flat_gradient
from benchmarks.step_time.workloads import (
    QUICKSTART,
    SHAPES,
    TEXT,
    FixedRollouts,
    Workload,
    image_workload,
    inputs_of,
    make_model,
    useful_flops,
    workloads,
)
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.forward import prepare_forward
from rollout_sft.step.collate import collate_padded, with_media
from tests.peak_memory import peak_bytes

ROOT = Path(__file__).parents[2]


def reference_gradient(
    model: PreTrainedModel, segments: list[Segment], adapter: InputAdapter = TEXT[0]
) -> torch.Tensor:
    """Runs each segment alone, unpacked, by transformers' own attention and a plain cross-entropy, all in float32."""
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    total = sum(s.weight_sum for s in segments)
    for s in segments:
        batch = with_media(collate_padded(pack_of([s]), filler_id=0, adapter=adapter), adapter).to(model.device)
        inputs = prepare_forward(model, batch.forward) if s.images else {"input_ids": batch.forward["input_ids"]}
        logits = model(**{**inputs, "logits_to_keep": batch.supervised}).logits[0].float()
        (torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum") / total).backward()
    gradient = flat_gradient(model)
    model.zero_grad()
    return gradient


def waits(variant: Variant) -> str:
    """Runs the windows with waiting for the device made an error, and says whether anything waited."""
    if not variant.steps.clock.cuda:
        return "not checked: no GPU"
    variant.steps.must_not_wait = True
    try:
        variant.run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"at least one ({str(error).splitlines()[0]})"
    finally:
        variant.steps.must_not_wait = False
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def peak(variant: Variant | Limit, device: torch.device) -> int:
    """Returns the bytes of tensors at the worst moment, without the weights."""
    if device.type != "cuda":
        return peak_bytes(variant.run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    variant.run()
    return torch.cuda.max_memory_allocated() - before


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second of a large matrix product on this machine, the best of five."""
    n, clock = (8192, Clock(device)) if device.type == "cuda" else (1024, Clock(device))
    a = torch.randn(n, n, device=device, dtype=dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        start = clock.now()
        a @ a
        best = min(best, clock.now() - start)
    return 2.0 * n**3 / best


def measure(
    workload: Workload, shape: str, dtype: torch.dtype, device: torch.device, *, rounds: int, windows: int
) -> dict[str, Any]:
    model = make_model(shape, dtype, device)
    cpu = device.type == "cpu"
    data = FixedRollouts(workload, windows, model.config.get_text_config().vocab_size, inputs_of(shape))
    trainers = [Variant(name, workload, data, model, cpu) for name in VARIANTS]
    runners: list[Variant | Limit] = [*trainers, Limit(workload, data, model, trainers[-1].attention)]
    first = data.segments[: workload.window]
    expected = reference_gradient(model, first, data.adapter)
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    overheads: dict[str, list[float]] = {runner.name: [] for runner in trainers}
    gradients: dict[str, float | None] = {}
    for runner in runners:  # warms up, and gives the gradients
        if isinstance(runner, Variant):
            runner.steps.keep_gradient = True
        runner.run()
        held = runner.steps if isinstance(runner, Variant) else runner
        gradients[runner.name] = float((held.gradient.float() - expected).norm() / expected.norm())
        held.gradient = None
        if isinstance(runner, Limit) and runner.cut:
            gradients[runner.name] = None
    del expected
    for _ in range(rounds):
        for runner in runners:
            runner.run()
            seconds[runner.name].append(runner.seconds())
            if isinstance(runner, Variant):
                overheads[runner.name].append(runner.overhead())
    measured = data.segments[workload.window :]
    tokens = sum(s.encoded_len for s in measured) / (windows - 1)
    flops, best = useful_flops(model, measured, data.adapter) / (windows - 1), peak_flops(device, dtype)
    rows = []
    for runner in runners:
        median = statistics.median(seconds[runner.name])
        pairs = zip(seconds["padded micro-batches"], seconds[runner.name], strict=True)
        rows.append(
            {
                "variant": runner.name,
                "seconds": median,
                "all_seconds": seconds[runner.name],
                "ratio": statistics.median(padded / own for padded, own in pairs),
                "tokens_per_second": tokens / median,
                "utilisation": flops / median / best,
                "forwards": runner.forwards / windows,
                "overhead": statistics.median(overheads[runner.name]) if isinstance(runner, Variant) else None,
                "gradient": gradients[runner.name],
                "peak_bytes": peak(runner, device),
            }
        )
        print(rows[-1], flush=True)
    return {
        "model": shape,
        "workload": workload.name,
        "segments": workload.window,
        "tokens": tokens,
        "ga": workload.gradient_accumulation_steps,
        "packing_length": workload.packing_length,
        "fill": tokens / (workload.gradient_accumulation_steps * workload.packing_length),
        "peak_flops": best,
        "rows": rows,
        "syncs": waits(trainers[-1]),
    }


def planned(preset: str, dry_run: bool, only_shape: str | None = None) -> list[tuple[Workload, str]]:
    """Returns each workload with the shape of its model."""
    if only_shape:
        return [(w, only_shape) for w in workloads(1 if preset == "gpu" else 16)]
    if dry_run:
        text = [(replace(w, gradient_accumulation_steps=4), "tiny") for w in workloads(64)]
        return [*text, (replace(image_workload(64), gradient_accumulation_steps=4, batch_size=3), "tiny images")]
    if preset == "gpu":
        return [(w, shape) for shape in ("0.6b", "1.7b") for w in workloads(1)] + [(image_workload(1), "2b images")]
    return [(w, "quickstart") for w in (QUICKSTART, *workloads(16))]


def work_of(workload: Workload, shape: str, windows: int) -> float:
    """Returns the operations of a model's windows with this workload; makes no weights."""
    model = make_model(shape, torch.bfloat16, torch.device("meta"))
    data = FixedRollouts(workload, windows, model.config.get_text_config().vocab_size, inputs_of(shape))
    return useful_flops(model, data.segments, data.adapter)


class Budget:
    """
    Chooses what can be measured in some minutes, by the speed of what was measured before.

    Args:
        minutes (`float`, *optional*):
            How long all may take; None leaves nothing out.
    """

    def __init__(self, minutes: float | None):
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._last: tuple[float, float] | None = None
        self._pace = float("inf")
        self.left_out: list[str] = []

    def has_room(self, name: str, work: float) -> bool:
        """
        Says whether to measure this now; asked before each, in order. The first is measured in any case.

        Args:
            name (`str`):
                Kept in `left_out` if there is no room.
            work (`float`):
                Its operations; takes the best pace of those measured before.
        """
        now = time.monotonic()
        if self._last is not None:
            began, done = self._last
            self._pace = min(self._pace, (now - began) / done)
            self._last = None
        if self._pace < float("inf") and now + self._pace * work > self._end:
            self.left_out.append(name)
            return False
        self._last = now, work
        return True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=["cpu", "gpu"], required=True, help="models, lengths and precision")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where it runs; as the preset says when not given")
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny model, short rollouts and GA 4: shows that it runs"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=2, help="the first of each run warms up")
    parser.add_argument("--minutes", type=float, help="leave out what would not end within them")
    parser.add_argument("--only", help="part of a workload's name")
    parser.add_argument("--shape", choices=list(SHAPES), help="another model than the preset's, without images")
    parser.add_argument("--out", help="folder of the results")
    args = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device(args.device or ("cuda" if args.preset == "gpu" else "cpu"))
    dtype = torch.bfloat16 if args.preset == "gpu" else torch.float32
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {threads}"
    load = os.getloadavg()[0]
    about = {
        "machine": machine,
        "versions": VERSIONS,
        "command": f"python -m benchmarks.step_time --preset {args.preset}"
        + (f" --device {args.device}" if args.device else "")
        + (" --dry-run" if args.dry_run else "")
        + f" --rounds {args.rounds} --windows {args.windows}"
        + (f" --minutes {args.minutes:g}" if args.minutes else "")
        + (f" --shape {args.shape}" if args.shape else "")
        + (f' --only "{args.only}"' if args.only else ""),
    }
    budget = Budget(args.minutes)
    tables = [
        measure(workload, shape, dtype, device, rounds=args.rounds, windows=args.windows)
        for workload, shape in planned(args.preset, args.dry_run, args.shape)
        if not args.only or args.only in workload.name
        if not args.minutes or budget.has_room(f"{workload.name}, {shape}", work_of(workload, shape, args.windows))
    ]
    if budget.left_out:
        about["left out"] = f"{'; '.join(budget.left_out)}: would not end within {args.minutes:g} minutes"
        print(about["left out"], flush=True)
    about["load average"] = f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    results = {"about": about, "tables": tables}
    usual = not args.dry_run and device.type == ("cuda" if args.preset == "gpu" else "cpu")
    name = f"step_time_{args.preset}" + ("" if usual else f"_on_{device.type}") + ("_dry_run" if args.dry_run else "")
    name += f"_{args.shape}" if args.shape else ""
    whole = usual and (args.shape or not args.only)
    folder = Path(args.out) if args.out else ROOT / ("benchmarks/results" if whole else "runs")
    report.write(results, folder / name, report.DRY_RUN if args.dry_run else report.NOTES[args.preset])
    if whole and not args.shape:
        report.draw(results, ROOT / "docs" / "images" / f"{name}.png")


if __name__ == "__main__":
    main()
