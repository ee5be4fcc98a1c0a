"""Which model families keep packed segments apart: the leak probe over all that builds from a tiny configuration.

    python -m benchmarks.mask_table

Every causal language model of the installed transformers, times eager, sdpa, flex attention and this project's varlen
attention, each family in a separate process (some configurations take minutes or gigabytes, some crash). Writes
`docs/masks.md`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.model.attention import VARLEN, choose_attention
from tests.tiny_families import VARIANTS, tiny_config

ROOT = Path(__file__).parents[1]
LIMIT = 180
NO = "-"
NOT_BUILT = "not built"
ATTENTIONS = ("eager", "sdpa", "flex_attention", VARLEN)
INTRODUCTION = """\
# Which models keep packed segments apart

Made by `make masks`: the start-up probe (`rollout_sft.check_isolation`) on every causal language model of
transformers that builds from a tiny configuration, float32, CPU, random weights, with the arguments that training
passes. What holds for your model, attention and dtype is measured again before the first step.

- **leaks**: changing one segment moved its neighbour's logits; the number is relative to the largest logit (at
  most 1e-5 counts as isolated); *positions*: the logits of segments behind the first changed. Such a model does not
  train on packs.
- isolated: they did not move, or by the number given.
- refuses: the forward raises because of the packing, so nothing can leak silently. Hybrids do where the kernel of
  their recurrent layers is not installed; with it they may be isolated or leak, which the probe finds out.
- fails: the forward raises for another reason, as a rule a size of the tiny configuration; nothing is known.
- `rollout_varlen` is this project's attention (`rollout_matching.attention: auto` takes it where it can run); a dash
  means that the model does not support the attention.
"""


def probe(family: str, attention: str) -> str:
    """The verdict for one family in one attention; begins with `not built` where there is no model to probe."""
    torch.manual_seed(0)
    try:
        config = tiny_config(family)
        if config is None:
            return f"{NOT_BUILT}: the text model is nested in a multimodal configuration"
        model = _build(config, attention)
        size = sum(p.numel() for p in model.parameters())
        if size > 50_000_000:
            return f"{NOT_BUILT}: {size / 1e6:.0f} million parameters in spite of the small sizes"
    except _Unsupported:
        return NO
    except Exception as error:
        return f"{NOT_BUILT}: {_short(error)}"
    return _verdict(model)


class _Unsupported(Exception):
    """The model does not know this attention."""


def _build(config, attention: str):
    build = transformers.AutoModelForCausalLM.from_config
    if attention != VARLEN:
        try:
            return build(config, attn_implementation=attention)
        except ValueError as error:
            if "does not support an attention implementation" in str(error):
                raise _Unsupported from error
            raise
    model = build(config)
    try:
        choose_attention(model, "varlen", device=torch.device("cpu"))
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


def in_own_process(family: str, attention: str) -> str:
    """Runs `probe` in a forked process with a time limit; forked, since the imports take longer than most families."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(writer, family, attention))
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


def _answer(writer: Connection, family: str, attention: str) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    writer.send(probe(family, attention))


def page(found: dict[str, dict[str, str]]) -> str:
    """The whole of `docs/masks.md`."""
    built = {f: v for f, v in found.items() if not all(c == NO or c.startswith(NOT_BUILT) for c in v.values())}
    lines = [f"| {family} | " + " | ".join(v[a] for a in ATTENTIONS) + " |" for family, v in built.items()]
    isolated, leaking = (
        [f for f, v in built.items() if any(word in cell for cell in v.values())] for word in ("isolated", "leaks")
    )
    cured = sum("leaks" in (v["eager"] + v["sdpa"]) and "isolated" in v[VARLEN] for v in built.values())
    counts = (
        f"torch {torch.__version__}, transformers {transformers.__version__}: {len(built)} of {len(found)} families "
        f"could be built; {len(isolated)} are isolated in at least one attention, {len(leaking)} leak in at least one. "
        f"{cured} that leak with eager or sdpa are isolated with {VARLEN}."
    )
    reasons = {f: next((c for c in v.values() if c != NO), NO) for f, v in found.items() if f not in built}
    missing = "\n".join(f"- {family}: {reason.removeprefix(NOT_BUILT + ': ')}" for family, reason in reasons.items())
    header = f"| family | {' | '.join(ATTENTIONS)} |\n|---|{'---|' * len(ATTENTIONS)}\n"
    return f"{INTRODUCTION}\n{counts}\n\n{header}" + "\n".join(lines) + f"\n\n## Not built\n\n{missing}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="probe these families and print what was found, nothing else")
    only = parser.parse_args().only
    transformers.logging.set_verbosity_error()
    found: dict[str, dict[str, str]] = {}
    for family in only or sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]):
        found[family] = {}
        for attention in ATTENTIONS:
            found[family][attention] = in_own_process(family, attention)
            if found[family][attention].startswith(NOT_BUILT) and attention == ATTENTIONS[0]:
                break
        for attention in ATTENTIONS:
            found[family].setdefault(attention, found[family][ATTENTIONS[0]])
        print(family, found[family], flush=True)
    if not only:
        (ROOT / "docs" / "masks.md").write_text(page(found))


if __name__ == "__main__":
    main()
