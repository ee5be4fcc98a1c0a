"""Submits a training to Slurm: `python -m examples.slurm.submit --config my.yaml --nodes 4 --gpus 8`.

`--server-nodes 1` adds machines that run vLLM servers for the rollouts; the training starts when all of them answer.
The job takes the machines with all their cores, or with `--cpus-per-gpu` those that are asked for.
`--dry-run` prints the job's script and submits nothing. All machines see the configuration, the data and `output_dir`
under the same paths, and have the same Python environment.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SERVERS = """
servers=("${{nodes[@]:{nodes}}}")
urls=()
for server in "${{servers[@]}}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$server" {python} -m rollout_sft.serve --config {config} \\
        --port {port} --host "$server" --tensor-parallel-size {gpus} &
    waiting[$!]="$server"
    urls+=("http://$server:{port}")
done
for process in "${{!waiting[@]}}"; do
    until curl --silent --fail --output /dev/null "http://${{waiting[$process]}}:{port}/health"; do
        kill -0 "$process" || {{ echo "the server on ${{waiting[$process]}} ended before it answered"; exit 1; }}
        sleep 5
    done
done
config={folder}/job-"$SLURM_JOB_ID".yaml
cat > "$config" <<YAML
extends: {config}
rollout_matching:
  rollout_backend: vllm
  vllm: {{mode: server, base_url: [$(IFS=,; echo "${{urls[*]}}")]}}
YAML
"""

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={all_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH {cores}
#SBATCH --time={time}
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
declare -A waiting
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
trainers=("${{nodes[@]:0:{nodes}}}")
config={config}
{servers}
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --nodelist="$(IFS=,; echo "${{trainers[*]}}")" \\
    {python} -m torch.distributed.run --nnodes {nodes} --nproc_per_node {gpus} --rdzv_id "$SLURM_JOB_ID" \\
    --rdzv_backend c10d --rdzv_endpoint "${{trainers[0]}}:{rdzv_port}" -m rollout_sft.train --config "$config"
"""


def script(options: argparse.Namespace) -> str:
    """Returns the script of the job."""
    path = Path(options.config).resolve()
    values = {
        "name": path.stem,
        "nodes": options.nodes,
        "all_nodes": options.nodes + options.server_nodes,
        "gpus": options.gpus,
        "cores": f"--cpus-per-gpu={options.cpus_per_gpu}" if options.cpus_per_gpu else "--exclusive",
        "time": options.time,
        "python": shlex.quote(options.python),
        "config": shlex.quote(str(path)),
        "folder": shlex.quote(str(path.parent)),
        "port": options.port,
        "rdzv_port": options.rdzv_port,
    }
    return _SCRIPT.format(**values, servers=_SERVERS.format(**values).strip() if options.server_nodes else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints or submits the job."""
    parser = argparse.ArgumentParser(prog="python -m examples.slurm.submit", description=__doc__)
    parser.add_argument("--config", required=True, help="the YAML file of the training")
    parser.add_argument("--nodes", type=int, required=True, help="machines that train")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of each machine; each gets one rank")
    parser.add_argument("--cpus-per-gpu", type=int, help="cores for each rank; all cores of the machines by default")
    parser.add_argument("--server-nodes", type=int, default=0, help="further machines that run vLLM servers")
    parser.add_argument("--port", type=int, default=8000, help="port of the servers")
    parser.add_argument("--rdzv-port", type=int, default=29500, help="port on which the machines find each other")
    parser.add_argument("--time", default="24:00:00", help="time limit of the job")
    parser.add_argument("--python", default=sys.executable, help="the interpreter, under this path on all machines")
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        sys.stdout.write(script(options))
    else:
        subprocess.run(["sbatch"], input=script(options), text=True, check=True)


if __name__ == "__main__":
    main()
