"""Leaves the tests that need a real vLLM out where there is none, and says so in one line."""

import gc
from importlib.util import find_spec

HAS_VLLM = find_spec("vllm") is not None
# No tests: what processes import before they are forked, and what `make mutants` needs an extra for.
collect_ignore = ["preloaded.py", "mutants", *([] if HAS_VLLM else ["vllm"])]


def pytest_collection_finish():
    """Leaves what imports made out of later collections: every trainer collects garbage as it starts to train."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    if not HAS_VLLM:
        terminalreporter.write_line("tests/vllm was left out: vLLM is not installed here; make test-vllm runs it.")
