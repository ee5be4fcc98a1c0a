"""Measures scopes `window` and `global` on two ranks, one of which has segments twice as long."""
