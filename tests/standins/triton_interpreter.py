"""Runs fla's Triton kernels on CPU tensors in Triton's interpreter. Import it before fla and transformers' models.

Triton asks for a driver before it interprets anything, so one stands in. Kernels are not tuned: the first configuration
is taken. Loops count as in a compiled kernel, where the variable of `range` is a tensor.
"""

import contextlib
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from triton.runtime import autotuner, driver, interpreter


class Target:
    backend, arch, warp_size = "cpu", 0, 32


class Driver:
    """What Triton and fla ask of a driver."""

    def get_current_target(self):
        return Target()

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        return lambda kernel, quantiles=None, **options: [1.0, 1.0, 1.0]

    def get_empty_cache_for_benchmark(self):
        return torch.empty(1)

    def clear_cache(self, cache):
        """Does nothing: nothing is timed."""


def _count(*bounds):
    return map(interpreter._implicit_cvt, range(*(int(bound) for bound in bounds)))


_tuned = autotuner.Autotuner.__init__
_run = interpreter.GridExecutor.__call__


def _first_configuration(self, kernel, arg_names, configs, *args, **kwargs):
    _tuned(self, kernel, arg_names, list(configs)[:1], *args, **kwargs)


def _run_with_counters(self, *args, **kwargs):
    names = self.fn.__globals__
    if "range" in names:
        return _run(self, *args, **kwargs)
    names["range"] = _count
    try:
        return _run(self, *args, **kwargs)
    finally:
        del names["range"]


driver.set_active(Driver())
torch.cpu.device = lambda index: contextlib.nullcontext()
autotuner.Autotuner.__init__ = _first_configuration
interpreter.GridExecutor.__call__ = _run_with_counters
