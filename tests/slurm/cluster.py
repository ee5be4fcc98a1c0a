"""A real Slurm on this machine: munged, slurmctld and two slurmd, each with a GPU that exists on paper only."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CORES = os.cpu_count() or 1
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmdSpoolDir={run}/spool-%n
StateSaveLocation={run}/state
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} RealMemory=4000 Gres=gpu:1
NodeName={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} RealMemory=4000 Gres=gpu:1
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """The programs of Slurm that are not installed here."""
    path = os.environ["PATH"] + ":/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """Starts the daemons in a folder of its own; `stop` ends them."""

    def __init__(self, folder: Path):
        self.run = folder
        self.host = socket.gethostname()
        self.nodes = ("127.0.0.2", "127.0.0.3")  # names that lead to this machine on every machine
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] += ":/usr/sbin"
        self._running: list[subprocess.Popen[bytes]] = []
        ports = [free_port() for _ in range(3)]
        values = {"run": folder, "host": self.host, "nodes": self.nodes, "ports": ports, "cores": CORES}
        (folder / "slurm.conf").write_text(CONF.format(**values))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> None:
        options = [f"--{name}-file={self.run}/munge.{name.split('-')[0]}" for name in ("key", "pid", "log", "seed")]
        self._begin("munged", "--foreground", "--force", f"--socket={self.run}/munge.socket", *options)
        self.wait(lambda: (self.run / "munge.socket").exists(), 20, "munged")
        self._begin("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._begin("slurmd", "-D", "-N", node)
        self.wait(lambda: self.command("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", 60, "the nodes")

    def _begin(self, *command: str) -> None:
        with (self.run / f"{command[0]}-{len(self._running)}.out").open("wb") as output:
            self._running.append(
                subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
            )

    def command(self, *command: str) -> str:
        """Runs a command of Slurm and returns what it prints."""
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=60)
        return done.stdout

    def wait(self, done, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in self.run.glob("*.[ol]*"))
                raise TimeoutError(
                    f"{what} after {seconds} s\n{self.command('sinfo')}\n{self.command('squeue')}\n{logs}"
                )
            time.sleep(0.3)

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING."""
        shown = self.command("scontrol", "show", "job", job)
        return next((word.split("=")[1] for word in shown.split() if word.startswith("JobState=")), "UNKNOWN")

    def ended(self, job: str) -> bool:
        return self.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def stop(self) -> None:
        self.command("scancel", "--partition=main")
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
