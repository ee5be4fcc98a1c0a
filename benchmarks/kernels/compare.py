"""The gradient of a pack through real kernels, beside that of its segments alone in PyTorch and float32.

    python -m benchmarks.kernels                  on a GPU: each attention and fla's kernels, as far as installed
    python -m benchmarks.kernels --interpreter    fla's Triton kernels on a CPU, in Triton's interpreter

A row holds three relative differences (2-norm) from the gradient of the segments alone, which PyTorch's own functions
compute on a CPU in float32 from the same weights: of the pack; of packs of one segment each through the same kernel,
whose difference is the kernel's rounding; and of the pack when the kernel is not told the borders. The first has to be
as small as the second, or the script ends with status 1. The third has to be large; on a GPU, whose rounding may hide
it, a row says so and the script goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LENS = (7, 1, 12, 3, 70, 64)
"""Segments shorter than a convolution, of exactly a chunk of fla's kernels, and of more than one."""
WIDE = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_value_heads": 4}
HYBRIDS = {"qwen3_next": WIDE, "qwen3_5_text": WIDE, "olmo_hybrid": WIDE, "kimi_linear": {"linear_head_dim": 16}}
"""Families whose layers call fla; its kernels multiply matrices of at least 16 columns."""
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTIONS = {"qwen3": GROUPED, "mistral": {"sliding_window": 4}, "deepseek_v3": {}}
WAYS = ("rollout_varlen", "flash_attention_2", "flex_attention", "sdpa")
PACKAGES = ("torch", "transformers", "triton", "flash-linear-attention", "causal-conv1d", "flash-attn")


def measure(family: str, way: str, overrides: dict[str, Any], dtype: torch.dtype, device: torch.device) -> list[float]:
    """
    Compares one family through one way.

    Returns:
        `list[float]`: the differences of the pack, of packs of one segment, and of the pack without borders.
    """
    from transformers import AutoModelForCausalLM, set_seed

    from rollout_sft.inputs.segment import Segment
    from rollout_sft.model.attention import choose_attention
    from rollout_sft.model.layer_kinds import SCANS, is_kernel
    from rollout_sft.model.recurrent import RecurrentLayers
    from tests.tiny_families import tiny_config

    set_seed(0)
    config = tiny_config(family, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").to(dtype).eval()
    plain = copy.deepcopy(model).float()
    plain.set_attn_implementation("eager")
    model.to(device)
    if way in ("fla", "rollout_varlen"):
        choose_attention(model, "auto" if way == "fla" else "varlen", device=device)
    else:
        model.set_attn_implementation(way)
    draw = torch.Generator().manual_seed(9)
    rows = [torch.randint(3, 90, (n,), generator=draw).tolist() for n in LENS]
    segments = [Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in rows]
    factors = torch.randn(sum(LENS), model.config.vocab_size, generator=draw)
    parts = factors.split(LENS)
    with in_pytorch(plain):
        alone = [
            (plain(input_ids=one.input_ids[None], use_cache=False).logits, f)
            for one, f in zip(segments, parts, strict=True)
        ]
        expected = gradient(plain, alone)
    layers = RecurrentLayers(model, device=torch.device("cuda"))
    if way == "fla" and not any(
        name in SCANS and is_kernel(space[name], "cu_seqlens") for space, name in _functions(model)
    ):
        raise RuntimeError("fla is not installed")
    with layers.active():
        packed = gradient(model, [(forward(model, segments), factors)])
        single = gradient(model, [(forward(model, [one]), f) for one, f in zip(segments, parts, strict=True)])
        with without_borders(model):
            joined = gradient(model, [(forward(model, segments, joined=not layers.by_kernel), factors)])
    return [float((found - expected).norm() / expected.norm()) for found in (packed, single, joined)]


def forward(model: Any, segments: list[Any], *, joined: bool = False) -> torch.Tensor:
    """The logits of one pack; `joined` gives it the positions and borders of a single segment."""
    from rollout_sft.checks.probe_inputs import packed_inputs
    from rollout_sft.inputs.text import TextInputs
    from rollout_sft.model.forward import prepare_forward

    given = packed_inputs(segments, TextInputs())
    if joined:
        total = int(given["cu_seq_lens_q"][-1])
        borders = torch.tensor([0, total], dtype=torch.int32)
        given |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": total, "max_length_k": total}
        given |= {"position_ids": torch.arange(total)[None], "seq_idx": torch.zeros(1, total, dtype=torch.int32)}
    moved = {n: v.to(model.device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    return model(**prepare_forward(model, moved)).logits


def gradient(model: Any, outputs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The gradient of a sum over all logits with fixed random factors, on the CPU."""
    model.zero_grad()
    for logits, factors in outputs:
        (logits[0].float().log_softmax(-1) * factors.to(logits.device)).sum().backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


def _functions(model: Any) -> Iterator[tuple[dict[str, Any], str]]:
    from rollout_sft.model.layer_kinds import kernel_names, recurrent_layers

    for layer in recurrent_layers(model).values():
        space = vars(sys.modules[type(layer).__module__])
        yield from ((space, name) for name in sorted(kernel_names(layer) & set(space)))


@contextlib.contextmanager
def _replaced(model: Any, change: Any) -> Iterator[None]:
    """Changes the functions behind which kernels stand, for a block of code."""
    own = {name: (space, space[name]) for space, name in _functions(model)}
    for name, (space, function) in own.items():
        space[name] = change(name, function)
    try:
        yield
    finally:
        for name, (space, function) in own.items():
            space[name] = function


def in_pytorch(model: Any) -> contextlib.AbstractContextManager[None]:
    """Computes recurrent layers by the functions of PyTorch that transformers keeps."""
    return _replaced(model, lambda name, function: inspect.unwrap(function))


def without_borders(model: Any) -> contextlib.AbstractContextManager[None]:
    """Takes `cu_seqlens` from the scans of recurrent layers."""

    def change(name: str, function: Any) -> Any:
        if "chunk" not in name:
            return function
        return lambda *args, **kwargs: function(*args, **{**kwargs, "cu_seqlens": None})

    return _replaced(model, change)


def cells(interpreter: bool) -> Iterator[tuple[str, str, dict[str, Any], torch.dtype]]:
    """The families, ways, sizes and precisions to measure."""
    yield from ((family, "fla", sizes, torch.float32) for family, sizes in HYBRIDS.items())
    if interpreter:
        return
    # The others round so much in bfloat16, by their experts or weak states, that missing borders would not show.
    yield "olmo_hybrid", "fla", HYBRIDS["olmo_hybrid"], torch.bfloat16
    for family, sizes in ATTENTIONS.items():
        for way in WAYS:
            yield family, way, sizes, torch.float32 if way in ("sdpa", "flex_attention") else torch.bfloat16


def verdict(pack: float, single: float, joined: float) -> str:
    """Says whether the pack is as near as its segments through the same kernel, and whether a leak would show."""
    if pack > 2 * single + 1e-6:
        return "wrong: the pack is farther than its segments by the same kernel"
    return "right" if joined > 10 * pack else "blind: it does not see missing borders"


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| family | kernel | dtype | pack | packs of one | without borders | |", "|---|---|---|--:|--:|--:|---|"]
    for row in results["rows"]:
        numbers = " | ".join(f"{value:.1e}" for value in row["differences"]) or "| |"
        lines.append(f"| {row['family']} | {row['way']} | {row['dtype']} | {numbers} | {row['verdict']} |")
    return "\n".join(lines)


def section() -> str:
    """What `docs/masks.md` says, by the last runs on a CPU and on a GPU."""
    found = json.loads((RESULTS / "kernels_interpreter.json").read_text())
    gpu = RESULTS / "kernels_gpu.json"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number != "-")
    on_gpu = "On a GPU (`make bench-gpu`) this has never run."
    if gpu.exists():
        more = json.loads(gpu.read_text())
        on_gpu = f"On a GPU (`make bench-gpu`, {more['machine']}):\n\n{table(more)}"
    return (
        "Where flash-linear-attention and causal-conv1d are installed and there is a GPU, their kernels get the "
        "borders of the pack instead of a loop over segments. `make check-triton` runs fla's own Triton kernels on a "
        "CPU, in Triton's interpreter, forward and backward, with an exact stand-in for causal-conv1d. kimi_linear and "
        "bailing_hybrid do not tell fla the borders (transformers 5.23), so each of their segments goes to "
        "the kernel alone. The gradient of a pack of "
        f"segments of {', '.join(map(str, LENS))} tokens and of packs of one segment each, relative to the segments "
        "alone by PyTorch's functions; without borders, `cu_seqlens` is taken from the kernel (kimi_linear: "
        "the pack is given as one segment).\n\n"
        f"{table(found)}\n\n{versions}. {on_gpu}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreter", action="store_true", help="fla alone, on a CPU, in Triton's interpreter")
    parser.add_argument("--only", nargs="+", help="these families; writes nothing")
    arguments = parser.parse_args(argv)
    if arguments.interpreter:
        sys.path.insert(0, str(ROOT / "tests" / "standins" / "packages_hybrids"))
        import tests.standins.triton_interpreter  # noqa: F401  # before fla
    elif not torch.cuda.is_available():
        raise SystemExit("there is no GPU here. make check-triton runs fla's kernels in Triton's interpreter.")
    device = torch.device("cpu" if arguments.interpreter else "cuda")
    rows = []
    for family, way, sizes, dtype in cells(arguments.interpreter):
        if arguments.only and family not in arguments.only:
            continue
        row = {"family": family, "way": way, "dtype": str(dtype).removeprefix("torch."), "differences": []}
        try:
            row["differences"] = measure(family, way, sizes, dtype, device)
            row["verdict"] = verdict(*row["differences"])
        except (ImportError, RuntimeError, ValueError) as error:
            row["verdict"] = f"not run: {str(error).splitlines()[0][:90]}"
        print(row, flush=True)
        rows.append(row)
    machine = "Triton's interpreter, a CPU" if arguments.interpreter else torch.cuda.get_device_name()
    results = {"machine": machine, "versions": {name: _version(name) for name in PACKAGES}, "rows": rows}
    print(table(results))
    if not arguments.only:
        name = "kernels_interpreter.json" if arguments.interpreter else "kernels_gpu.json"
        (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n")
    # A GPU may round more than a CPU; a row that is blind there says so and is no fault of the kernel.
    faults = ("wrong", "blind") if arguments.interpreter else ("wrong",)
    wrong = [row for row in rows if row["verdict"].startswith(faults)]
    if wrong or not any(row["verdict"] == "right" for row in rows):
        raise SystemExit(1)
