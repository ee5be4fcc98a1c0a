"""Seconds per optimizer step on the same fixed rollouts, through the real trainer, from padded batches to the limit.

    OMP_NUM_THREADS=1 python -m benchmarks.step_time --preset cpu
    python -m benchmarks.step_time --preset gpu

The variants run in turns, round after round; a number is the median over the rounds, a ratio the median of the ratios
within a round. Each variant's gradient of the first window is compared with that of its segments one by one. The CPU is
measured in processor time, so that a busy machine changes little; a GPU by the wall clock, after synchronising.
Learning rate 0: the optimizer does its work, and every variant sees the same weights.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.step_time import report
from benchmarks.step_time.variants import VARIANTS, Clock, Limit, Variant, flat_gradient
from benchmarks.step_time.workloads import QUICKSTART, FixedRollouts, Workload, make_model, useful_flops, workloads
from rollout_sft.collate import collate_padded
from rollout_sft.segments import Segment
from tests.peak_memory import peak_bytes

ROOT = Path(__file__).parents[2]


def reference_gradient(model: PreTrainedModel, segments: list[Segment]) -> torch.Tensor:
    """Each segment alone, unpacked, by transformers' own attention and a plain cross-entropy."""
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    total = sum(s.weight_sum for s in segments)
    for s in segments:
        batch = {k: v.to(model.device) for k, v in collate_padded([s], filler_id=0).items() if k != "use_cache"}
        logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["kept"]).logits[0].float()
        (torch.nn.functional.cross_entropy(logits, batch["targets"], reduction="sum") / total).backward()
    gradient = flat_gradient(model)
    model.zero_grad()
    return gradient


def waits(variant: Variant) -> str:
    """Runs the windows with waiting for the device made an error between the rollouts and each loss's backward."""
    if not variant.steps.clock.cuda:
        return "none possible on a CPU; the check ran without a device"
    step = variant.trainer.training_step

    def guarded(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    variant.trainer.training_step = guarded
    try:
        variant.run()
    except RuntimeError as error:
        return f"at least one ({str(error).splitlines()[0]})"
    finally:
        variant.trainer.training_step = step
    return "none"


def peak(variant: Variant | Limit, device: torch.device) -> int:
    """Bytes of tensors at the worst moment, without the weights."""
    if device.type != "cuda":
        return peak_bytes(variant.run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    variant.run()
    return torch.cuda.max_memory_allocated() - before


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine, the best of five."""
    n, clock = (8192, Clock(device)) if device.type == "cuda" else (1024, Clock(device))
    a = torch.randn(n, n, device=device, dtype=dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        start = clock.now()
        a @ a
        best = min(best, clock.now() - start)
    return 2.0 * n**3 / best


def measure(workload: Workload, shape: str, device: torch.device, *, rounds: int, windows: int) -> dict[str, Any]:
    cpu = device.type == "cpu"
    dtype = torch.float32 if cpu else torch.bfloat16
    model = make_model(shape, dtype).to(device)
    data = FixedRollouts(workload, windows, model.config.vocab_size)
    trainers = [Variant(name, workload, data, model, cpu) for name in VARIANTS]
    runners: list[Variant | Limit] = [*trainers, Limit(workload, data, model, trainers[-1].attention)]
    first = data.segments[: workload.window]
    expected = reference_gradient(model, first)
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    overheads: dict[str, list[float]] = {runner.name: [] for runner in trainers}
    gradients: dict[str, float | None] = {}
    for runner in runners:  # warms up, and gives the gradients
        if isinstance(runner, Variant):
            runner.steps.keep_gradient = True
        runner.run()
        gradient = runner.steps.gradient if isinstance(runner, Variant) else runner.gradient
        gradients[runner.name] = float((gradient.float() - expected.float()).norm() / expected.float().norm())
        if isinstance(runner, Limit) and runner.cut:
            gradients[runner.name] = None
    for _ in range(rounds):
        for runner in runners:
            runner.run()
            seconds[runner.name].append(runner.seconds())
            if isinstance(runner, Variant):
                overheads[runner.name].append(runner.overhead())
    measured = data.segments[workload.window :]
    tokens = sum(s.encoded_len for s in measured) / (windows - 1)
    flops, best = useful_flops(model, measured) / (windows - 1), peak_flops(device, dtype)
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


def cpu_name() -> str:
    """What /proc/cpuinfo calls the processor, where there is one."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=["cpu", "gpu"], required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=2, help="the first of each run warms up")
    parser.add_argument("--only", help="part of a workload's name")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device("cuda" if args.preset == "gpu" else "cpu")
    if args.preset == "gpu":
        plan = [(w, shape) for shape in ("0.6b", "1.7b") for w in workloads(1)]
    else:
        plan = [(w, "quickstart") for w in (QUICKSTART, *workloads(16))]
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {threads}"
    load = os.getloadavg()[0]
    about = {
        "machine": machine,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, accelerate {accelerate.__version__}",
        "command": f"python -m benchmarks.step_time --preset {args.preset} --rounds {args.rounds} "
        f"--windows {args.windows}",
    }
    tables = [
        measure(workload, shape, device, rounds=args.rounds, windows=args.windows)
        for workload, shape in plan
        if not args.only or args.only in workload.name
    ]
    about["load average"] = f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    results = {"about": about, "tables": tables}
    report.write(results, Path(args.out) / f"step_time_{args.preset}", report.NOTES[args.preset])
    if not args.only:
        report.draw(results, ROOT / "docs" / "images" / f"step_time_{args.preset}.png")


if __name__ == "__main__":
    main()
