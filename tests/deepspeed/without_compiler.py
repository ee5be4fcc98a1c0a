"""Lets DeepSpeed run on a CPU without a compiler; `python -m tests.deepspeed.without_compiler MODULE` runs a module.

On a CPU DeepSpeed compiles a collective of its own when it starts (half a minute), and fails where it cannot. Without
it the collectives are gloo's.
"""

import runpy
import sys

import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
