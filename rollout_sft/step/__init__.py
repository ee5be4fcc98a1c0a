"""One optimizer step, in the order in which it happens: build, schedule, collate, micro-steps, loss."""
