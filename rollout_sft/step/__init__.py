"""Runs one optimizer step, in this order: build, schedule, collate, micro-steps, loss."""
