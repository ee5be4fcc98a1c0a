"""Implements `plan_ranks`: levels cost between ranks, and plans ranks that do not fit alone."""
