"""Which model families keep packed segments apart: the leak probe over all that builds from a tiny configuration.

    python -m benchmarks.mask_table                    probes everything: half an hour
    python -m benchmarks.mask_table --only FAMILY ...  probes these families again, and keeps the other rows
    python -m benchmarks.mask_table --settings auto    probes what the trainer chooses by itself: minutes
    python -m benchmarks.mask_table --page             probes image models alone, and writes the page again

Every causal language model of the installed transformers, times what the trainer chooses by itself (`auto`), eager,
sdpa, flex attention and this project's varlen attention, each family in a separate process (some configurations take
minutes or gigabytes, some crash). Keeps what it finds in `benchmarks/results/masks.json` and writes `docs/masks.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto

from benchmarks import image_masks
from benchmarks.kernels import compare
from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.checks.unsupported import reject_unknown_positions
from rollout_sft.model.attention import VARLEN, choose_attention
from rollout_sft.model.recurrent import RecurrentLayers
from tests.tiny_families import VARIANTS, tiny_config

ROOT = Path(__file__).parents[1]
LIMIT = 180
NO = "-"
NOT_BUILT = "not built"
AUTO = "auto"
SETTINGS = (AUTO, "eager", "sdpa", "flex_attention", VARLEN)
CPU = torch.device("cpu")
RESULTS = ROOT / "benchmarks" / "results" / "masks.json"
HALVES = {
    *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "musicgen",
    "musicgen_melody",
    "trocr",
}
ENCODERS = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "git"} - HALVES
NO_DECODERS = ENCODERS | HALVES
REASONS = {
    "cpmant": "It attends both ways inside its prompt, by a bias over the whole row.",
    "deepseek_v4": "The cause is not known; its keys are compressed in blocks. The probe refuses it.",
    "mimo_v2_flash": "The tiny configuration does not fit; nothing is known.",
    "openai-gpt": "Its attention holds one triangle for the whole row and gets no mask.",
    "xlnet": "It attends by a permutation of the whole row.",
    "xlstm": "The trainer refuses it.",
}
"""Why a causal decoder is not isolated in the setting that `auto` chooses."""
INTRODUCTION = """\
# Which models keep packed segments apart

Made by `make masks`: the start-up probe (`rollout_sft.check_isolation`) on every causal language model of
transformers that builds from a tiny configuration, float32, CPU, random weights, with the arguments that training
passes. What holds for your model, attention and dtype is measured again before the first step. Gradients at every
length of a configuration, and resumed runs, are [below](#at-every-length).

- `auto` is what the trainer does with `rollout_matching.attention: auto`, the default: the attention that it chooses,
  and each segment alone in recurrent layers and in the attention of models that make no mask for packs. The other
  columns are an attention alone; `rollout_varlen` is this project's; a dash: the model does not support the attention.
- isolated: the logits of the neighbours did not move when a segment was changed, or by the number given.
- **leaks**: they moved; the number is relative to the largest logit (at most 1e-5 counts as isolated); *positions*: the
  logits of segments behind the first changed. Such a model does not train on packs.
- **differs**: no segment sees another, but a packed segment has other logits than in the model's plain forward, by the
  number given (RoBERTa and its relatives number tokens from the padding id on). Such a model does not train on packs.
- refuses: the forward raises because of the packing, so nothing can leak silently. Hybrids do in the columns of an
  attention alone, since no kernel of their recurrent layers is installed on a CPU.
- fails: the forward raises for another reason, as a rule a size of the tiny configuration; nothing is known.

Other kernels and engines: [what ran, and what did not](engines.md).
"""


def probe(family: str, setting: str) -> str:
    """The verdict for one family in one setting; begins with `not built` where there is no model to probe."""
    torch.manual_seed(0)
    try:
        config = tiny_config(family)
        if config is None:
            return f"{NOT_BUILT}: the text model is nested in a multimodal configuration"
        model = _build(config, setting)
        size = sum(p.numel() for p in model.parameters())
        if size > 50_000_000:
            return f"{NOT_BUILT}: {size / 1e6:.0f} million parameters in spite of the small sizes"
    except _Unsupported:
        return NO
    except Exception as error:
        return f"{NOT_BUILT}: {_short(error)}"
    if setting != AUTO:
        return _verdict(model)
    try:
        reject_unknown_positions(model)
    except ValueError as error:
        return f"refused: {_short(error)}"
    chosen = choose_attention(model, AUTO, device=CPU)
    with RecurrentLayers(model, device=CPU).active():
        return f"{_verdict(model)}, {chosen}"


class _Unsupported(Exception):
    """The model does not know this attention."""


def _build(config, attention: str):
    build = transformers.AutoModelForCausalLM.from_config
    if attention == AUTO:
        return build(config)
    if attention != VARLEN:
        try:
            return build(config, attn_implementation=attention)
        except ValueError as error:
            if "does not support an attention implementation" in str(error):
                raise _Unsupported from error
            raise
    model = build(config)
    try:
        choose_attention(model, "varlen", device=CPU)
    except ValueError as error:
        raise _Unsupported from error
    return model


def _verdict(model) -> str:
    try:
        report = check_isolation(model, vocab_size=96)
    except LeakError as error:
        text = str(error)
        if "blind" in text:
            return "probe blind"
        moved = re.search(r"by ([0-9.e+-]+|nan) of the largest logit", text)
        if "does not have the logits" in text:
            return f"**differs** ({moved[1] if moved else '?'})"
        reason = "positions, " if "behind another" in text else ""
        return f"**leaks** ({reason}{moved[1] if moved else '?'})"
    except Exception as error:
        packing = re.search(r"packed|sequences apart", str(error), re.I)
        return f"{'refuses' if packing else 'fails'}: {_short(error)}"
    return f"isolated ({report.leak:.0e})" if report.leak else "isolated"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(?<!\S)/\S+", "PATH", text)
    return text.replace("|", "/") if len(text) <= 70 else text[:67].replace("|", "/") + "..."


def in_own_process(family: str, setting: str, *, work: Callable[[str, str], str] = probe) -> str:
    """Runs `work` in a forked process with a time limit; forked, since the imports take longer than most families."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(writer, work, family, setting))
    process.start()
    writer.close()
    try:
        verdict: str = reader.recv() if reader.poll(LIMIT) else f"{NOT_BUILT}: not within {LIMIT} s"
    except EOFError:
        process.join()
        verdict = f"{NOT_BUILT}: the process crashed, exit code {process.exitcode}"
    process.kill()
    process.join()
    return verdict


def _answer(writer: Connection, work: Callable[[str, str], str], family: str, setting: str) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    writer.send(work(family, setting))


def page(found: dict[str, dict[str, str]]) -> str:
    """The whole of `docs/masks.md`."""
    built = {f: v for f, v in found.items() if not all(c == NO or c.startswith(NOT_BUILT) for c in v.values())}
    lines = [f"| {family} | " + " | ".join(v[a] for a in SETTINGS) + " |" for family, v in built.items()]
    decoders = {f: v[AUTO] for f, v in built.items() if f not in NO_DECODERS}
    apart = {f: cell for f, cell in decoders.items() if cell.startswith("isolated")}
    cured = sum("isolated" not in (v["eager"] + v["sdpa"]) and f in apart for f, v in built.items())
    counts = (
        f"torch {torch.__version__}, transformers {transformers.__version__}: {len(built)} of {len(found)} families "
        f"could be built, {len(decoders)} of them causal decoders, which are neither encoders nor halves of an "
        f"encoder-decoder. **{len(apart)} of these {len(decoders)} are isolated by `auto`** "
        f"({len(apart) / len(decoders):.0%}), {cured} of which leak or refuse with both eager and sdpa alone."
    )
    rest = "\n".join(f"- {f}: {cell}. {REASONS.get(f, '')}" for f, cell in decoders.items() if f not in apart)
    others = {
        "Encoders, trained with a causal mask": [f for f in built if f in ENCODERS],
        "Halves of an encoder-decoder": [f for f in built if f in HALVES],
    }
    marked = {f: f if v[AUTO].startswith("isolated") else f"{f} (not isolated)" for f, v in built.items()}
    groups = "\n".join(f"- {title}: {', '.join(marked[f] for f in names)}." for title, names in others.items())
    reasons = {f: next((c for c in v.values() if c != NO), NO) for f, v in found.items() if f not in built}
    missing = "\n".join(f"- {family}: {reason.removeprefix(NOT_BUILT + ': ')}" for family, reason in reasons.items())
    header = f"| family | {' | '.join(SETTINGS)} |\n|---|{'---|' * len(SETTINGS)}\n"
    from benchmarks import length_table  # it measures with this module

    parts = {
        "Causal decoders that `auto` does not isolate": rest,
        "Other families": groups,
        "Image models": image_masks.section(),
        "At every length": length_table.section(),
        "Recurrent layers by fla's kernels": compare.section(),
        "All families": header + "\n".join(lines),
        "Not built": missing,
    }
    return f"{INTRODUCTION}\n{counts}\n" + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="probe these families and keep the other rows")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="probe these columns")
    parser.add_argument("--page", action="store_true", help="write the page from what was found before")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    families = (
        []
        if arguments.page
        else arguments.only or sorted([*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])
    )
    for family in families:
        cells = found.setdefault(family, {})
        for setting in arguments.settings:
            cells[setting] = in_own_process(family, setting)
            if cells[setting].startswith(NOT_BUILT) and setting == arguments.settings[0]:
                cells.update(dict.fromkeys(SETTINGS, cells[setting]))
                break
        print(family, cells, flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    (ROOT / "docs" / "masks.md").write_text(page(dict(sorted(found.items()))))


if __name__ == "__main__":
    main()
