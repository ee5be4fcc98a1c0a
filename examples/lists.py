"""packsched for people with their own framework: it takes lengths and gives lists of indices.

    python -m examples.lists

The model is a bigram model in numpy, with its gradient written out; the loop would be the same in JAX or in C++. The
gradient of the packed window is compared with that of its sequences one by one.
"""

import numpy as np

from packsched import PackLayout, plan_window

VOCABULARY, PACKING_LENGTH, MICRO_STEPS = 50, 128, 8


def gradient_of(weights: np.ndarray, tokens: np.ndarray, targets: np.ndarray, total: int) -> np.ndarray:
    """Gradient of sum(cross-entropy) / total for logits = weights[token]; targets below 0 are not trained."""
    tokens, targets = tokens[targets >= 0], targets[targets >= 0]
    probabilities = np.exp(weights[tokens])
    probabilities /= probabilities.sum(1, keepdims=True)
    probabilities[np.arange(len(targets)), targets] -= 1
    gradient = np.zeros_like(weights)
    np.add.at(gradient, tokens, probabilities / total)
    return gradient


def next_tokens(sequence: np.ndarray) -> np.ndarray:
    """What each position predicts; the last one predicts nothing, so no target crosses into the next segment."""
    return np.append(sequence[1:], -1)


def main() -> float:
    """Packs one window; returns the difference of the gradients."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(VOCABULARY, VOCABULARY))
    sequences = [rng.integers(VOCABULARY, size=n) for n in rng.integers(5, 60, size=24)]
    total = sum(len(sequence) - 1 for sequence in sequences)  # of the whole window, so no packing changes the gradient

    plan = plan_window([len(sequence) for sequence in sequences], PACKING_LENGTH, MICRO_STEPS)
    packed = np.zeros_like(weights)
    for number, indices in enumerate(plan.packs):  # exactly MICRO_STEPS packs, empty ones last
        layout = PackLayout.from_lengths([len(sequences[i]) for i in indices])
        print(f"micro-step {number}: {layout}")
        if indices:  # one process: an empty pack trains nothing. Ranks that meet in a forward need a dummy here.
            tokens = layout.concat([sequences[i] for i in indices])
            targets = layout.concat([next_tokens(sequences[i]) for i in indices])
            packed += gradient_of(weights, tokens, targets, total)

    expected = sum(gradient_of(weights, sequence, next_tokens(sequence), total) for sequence in sequences)
    apart = float(np.abs(packed - expected).max() / np.abs(expected).max())
    print(f"relative difference of the gradients: {apart:.1e}")
    assert apart < 1e-12, apart
    return apart


if __name__ == "__main__":
    main()
