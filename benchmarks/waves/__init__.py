"""Simulates what `rollout_waves` gains: training on early responses while the others are still generated."""
