"""Why a change of the sample may survive: (file, line before, line after) -> reason."""

PLANNER = "packsched/planner/"
WORK = "A limit of the work: it changes when a hopeless search stops, not what is right."

REASONS: dict[tuple[str, str, str], str] = {
    (
        "packsched/balancing/trades.py",
        "@dataclass(frozen=True, kw_only=True)",
        "@dataclass(frozen=True, kw_only=False)",
    ): "Style: it refuses positional arguments, and the one caller names them all.",
    (
        "packsched/terminal.py",
        'out.print(yaml_of(chosen), markup=False, highlight=False, end="")',
        'out.print(yaml_of(chosen), markup=True, highlight=False, end="")',
    ): "Equal: the YAML that it prints has no square brackets.",
    (
        "packsched/candidates.py",
        "target: float = 0.9,",
        "target: float = -0.09999999999999998,",
    ): "The command, its only caller, always says the target.",
    (
        f"{PLANNER}bin_completion.py",
        "self.nodes -= max(0, len(left) * ((room >> 14) + 1) - _FREE_SEGMENTS) // _SEGMENTS_PER_NODE",
        "self.nodes -= max(0, len(left) * ((room >> 13) + 1) - _FREE_SEGMENTS) // _SEGMENTS_PER_NODE",
    ): WORK,
    (
        f"{PLANNER}bin_completion.py",
        "fits = (1 << room + 1) - 1",
        "fits = (1 << room + 1) - 2",
    ): "Equal: lengths are at least 1, so a shifted bitset never has the lowest bit.",
    (
        f"{PLANNER}levelling.py",
        "for k in range(1, (len(lengths) - 1) // packs + 1):",
        "for k in range(1, (len(lengths) - 1) * packs + 1):",
    ): "Equal but slower: for a larger k the sum never exceeds the mean of a pack.",
    (
        f"{PLANNER}levelling.py",
        "elif middle == low:",
        "elif middle < low:",
    ): "Equal: the loop then ends one line further down, with the same result.",
    (
        "rollout_sft/step/non_finite.py",
        "micro_step = 0",
        "micro_step = 1",
    ): "Never read: `begin_window` sets it first.",
    (
        f"{PLANNER}stages.py",
        'Stage("first-fit decreasing", _too_large_to_search, 0, False, _first_fit),',
        'Stage("first-fit decreasing", _too_large_to_search, 0, True, _first_fit),',
    ): "Equal: windows that are too large to search are not levelled by searches either.",
    (
        f"{PLANNER}greedy.py",
        "if at == len(bands[band]):",
        "if at >= len(bands[band]):",
    ): "Equal: a bisection never returns more than the length.",
    (
        "rollout_sft/step/loss.py",
        "gradient.scatter_add_(1, targets[part, None], gradient.new_full((1, 1), -1.0).expand(len(gradient), 1))",
        "gradient.scatter_add_(1, targets[part, None], gradient.new_full((1, 1), -1.0).expand(len(gradient), 2))",
    ): "Equal: the indices say what is added, and they have one column.",
    (
        f"{PLANNER}bin_completion.py",
        "_SEGMENTS_PER_NODE = 4",
        "_SEGMENTS_PER_NODE = 5",
    ): WORK,
    (
        "packsched/ranks.py",
        'return plan_checked(lengths, cap, steps * ranks, "dense", work * share).packs',
        'return plan_checked(lengths, cap, steps * ranks, "dense", work // share).packs',
    ): WORK,
    (
        "rollout_sft/step/non_finite.py",
        "micro_step = 0",
        "micro_step = -1",
    ): "Never read: `begin_window` sets it first.",
    (
        "rollout_sft/step/loss.py",
        "return loss * (ranks / window_weight + 0 * loss.detach())",
        "return loss * (ranks / window_weight - 0 * loss.detach())",
    ): "Equal: 0 times a finite loss is 0, and 0 times any other is NaN, with either sign.",
    (
        "packsched/advise.py",
        "tight = (tokens - lens > micro_steps * (packing_length - lens)) & (np.cumsum(counts, axis=1) > micro_steps)",
        "tight = (tokens + lens > micro_steps * (packing_length - lens)) & (np.cumsum(counts, axis=1) > micro_steps)",
    ): "Equal but slower: more windows are in doubt, and a plan decides about those.",
    (
        "packsched/plots.py",
        'figure = Figure(figsize=(11, 10.5), layout="constrained")',
        'figure = Figure(figsize=(11, 11.5), layout="constrained")',
    ): "The height of a picture, in inches.",
    (
        "packsched/ranks.py",
        "plan or self._plan_rank(here, steps, self.effort * _TRIAL_EFFORT)",
        "plan or self._plan_rank(here, steps, self.effort // _TRIAL_EFFORT)",
    ): WORK,
    (
        "packsched/simulate.py",
        "done.rescued += misfits > 0",
        "done.rescued += misfits != 0",
    ): "Equal: a count is never below 0.",
    (
        "rollout_sft/step/build.py",
        "response_lens=tuple(window.response_lens) if self._config.rollout_waves > 1 else (),",
        "response_lens=tuple(window.response_lens) if self._config.rollout_waves > 0 else (),",
    ): "Equal: with one wave nobody reads the lengths; they are only left out of what the ranks exchange.",
    (
        "rollout_sft/checks/probe_inputs.py",
        "Image(source=draw.integers(0, 256, (height, width, 3), dtype=np.uint8), height=height, width=width)",
        "Image(source=draw.integers(0, 255, (height, width, 3), dtype=np.uint8), height=height, width=width)",
    ): "Any pixels do; these are drawn at random.",
}
