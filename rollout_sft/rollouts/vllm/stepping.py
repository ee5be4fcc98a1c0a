"""Steps a vLLM engine in this process and aborts the requests whose responses end early.

Ranks that share an engine step it together and see the same tokens, so they abort the same requests at the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rollout_sft.rollouts.endings import CHECK_EVERY, Watch
from rollout_sft.rollouts.vllm.backend import Answer


def step_watched(
    engine: Any, prompts: Sequence[Any], params: Sequence[Any], watch: Callable[[], Watch]
) -> list[Answer]:
    """
    Generates as `vllm.LLM.generate` does, and looks at each response every [`CHECK_EVERY`] tokens.

    Args:
        engine (`vllm.LLMEngine`):
            An engine without requests.
        prompts (`Sequence`):
            What to continue.
        params (`Sequence[SamplingParams]`):
            How to sample; one for each prompt.
        watch (`Callable[[], Watch]`):
            Makes what follows one response.

    Returns:
        `list[Answer]`: one for each prompt; one that was aborted has a few tokens too much.
    """
    from vllm.sampling_params import RequestOutputKind

    for i, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
        how.output_kind = RequestOutputKind.DELTA  # `LLM.generate` would ask for finished responses alone
        engine.add_request(str(i), prompt, how)
    answers = [Answer([], []) for _ in prompts]
    reasons: list[str | None] = [None] * len(prompts)
    watches = [watch() for _ in prompts]
    due = [CHECK_EVERY] * len(prompts)
    while engine.has_unfinished_requests():
        for output in engine.step():
            i = int(output.request_id)
            answers[i].prompt_ids[:] = output.prompt_token_ids
            response = answers[i].token_ids
            response += output.outputs[0].token_ids
            if output.finished and watches[i](response) is None:  # not aborted here
                reasons[i] = output.outputs[0].finish_reason
            if output.finished or len(response) < due[i]:
                continue
            due[i] = len(response) + CHECK_EVERY
            if watches[i](response) is not None:
                engine.abort_request([output.request_id])
    return [replace(answer, finish_reason=reason) for answer, reason in zip(answers, reasons, strict=True)]
