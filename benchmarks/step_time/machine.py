"""Says on which machine and with which versions a benchmark ran."""

from __future__ import annotations

import platform
from pathlib import Path

import accelerate
import torch
import transformers

VERSIONS = (
    f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
    f"accelerate {accelerate.__version__}"
)


def cpu_name() -> str:
    """Returns what /proc/cpuinfo calls the processor, where there is one."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()
