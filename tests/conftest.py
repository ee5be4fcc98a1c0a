"""Leaves the tests that need a real vLLM or DeepSpeed out where there is none, and says so in one line."""

import gc
from importlib.util import find_spec

MISSING = [name for name in ("vllm", "deepspeed") if find_spec(name) is None]
# No tests: what processes import before they are forked, what `make mutants` needs an extra for, and stand-ins for
# packages, which must not be importable where a test does not ask for them.
collect_ignore = ["preloaded.py", "mutants", "standins", *MISSING]


def pytest_collection_finish():
    """Leaves what imports made out of later collections: every trainer collects garbage as it starts to train."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    for name in MISSING:
        terminalreporter.write_line(
            f"tests/{name} was left out: {name} is not installed here; make test-{name} runs it."
        )
