"""How many cases a fuzz test tries: all of them under `make test-fuzz`, one in twenty under `make test`."""

import os

from hypothesis import HealthCheck, settings

WHOLE = os.environ.get("FUZZ") == "whole"


def cases(number):
    """Fixed seeds: the same cases in every run, so a failure is one that anybody sees."""
    return settings(
        max_examples=number if WHOLE else max(number // 20, 20),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
