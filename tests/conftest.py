"""Leaves the tests that need a real vLLM out where there is none, and says so in one line."""

from importlib.util import find_spec

HAS_VLLM = find_spec("vllm") is not None
collect_ignore = [] if HAS_VLLM else ["vllm"]


def pytest_terminal_summary(terminalreporter):
    if not HAS_VLLM:
        terminalreporter.write_line("tests/vllm was left out: vLLM is not installed here; make test-vllm runs it.")
