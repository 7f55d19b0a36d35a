"""A real Slurm of two nodes on this machine: as root, without systemd, gone without a trace afterwards.

All daemons and jobs live in one PID namespace, whose init is a child of this process: when that ends, however it ends,
the kernel kills them all. Each node is a namespace within that one, with a hostname of its own: killing its init is a
power cut. GPUs are character devices that lead nowhere; Slurm counts and hands them out like real ones.
"""

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.launch import ROOT

NODES = ("node1", "node2")
PACKAGES = "slurmctld slurmd slurm-client munge"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

_CONFIG = """\
ClusterName=tests
SlurmctldHost=controller(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expiry}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
MinJobAge=3600
FirstJobId={first_job}
SlurmdTimeout=15
MessageTimeout=5
KillWait=20
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=node1 NodeHostname=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF State=UP
"""
# cred_expire: a requeued job begins that many seconds later, and 5 is the least. config_overrides: the machine's
# cores need not be as many as the nodes claim. JobRequeue=0: the scripts' own --requeue must do.
GPUS_PER_NODE, CPUS_PER_NODE = 2, 4
_CREDENTIAL_SECONDS = 5

_INIT = """\
set -e
cd {folder}
mount --bind hosts /etc/hosts
hostname controller
munged --foreground --force --key-file=munge.key --socket={folder}/munge.socket --pid-file={folder}/munged.pid \
    --log-file={folder}/munged.log --seed-file={folder}/munged.seed &
while [ ! -S munge.socket ]; do sleep 0.05; done
slurmctld -D &
node() {{
    while :; do
        while [ ! -e "power-$1" ]; do sleep 0.1; done
        unshare --pid --mount --uts --fork --kill-child --mount-proc bash -c \
            "hostname $1; slurmd -D -N $1 & while :; do wait; sleep 0.2; done" || true
    done
}}
for name in {nodes}; do
    node $name &
done
while :; do wait || true; sleep 0.2; done
"""


def why_not() -> str | None:
    """Return why no cluster can run here and what to do about it, or nothing if one can."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "unshare", "setpriv")
    missing = [name for name in programs if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install --no-install-recommends {PACKAGES} util-linux"
    if os.geteuid() != 0:
        return "the tests' Slurm cluster is started as root; this user is not root: run pytest as root"
    probe = subprocess.run(["unshare", "--pid", "--mount", "--uts", "--fork", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        return f"no namespaces here ({probe.stderr.strip()}): run the container with CAP_SYS_ADMIN (--privileged)"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_gpu(Path(folder) / "gpu0")
        except OSError as error:
            return f"no devices can be made here ({error}): run the container with CAP_MKNOD (--privileged)"
    return None


def _path() -> str:
    """Return PATH with the folders of Debian's daemons."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"


@contextmanager
def running_cluster() -> Iterator["Cluster"]:
    """Start the daemons, hand out the cluster when all nodes are idle, and end every process of it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has 107 characters at most
    try:
        _write_files(folder)
        with (folder / "console.log").open("wb") as console:
            init = _start(folder, console.fileno())
        try:
            cluster = Cluster(folder)
            cluster.wait_until_idle()
            yield cluster
        finally:
            init.kill()  # unshare --kill-child: the namespace's init goes with it, and everything in there
            init.wait()
            _wait_for(lambda: not _processes_of(folder), 20, "the cluster's processes are still there")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path) -> None:
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
        (folder / f"power-{node}").touch()
    for number in range(GPUS_PER_NODE):
        _make_gpu(folder / f"gpu{number}")
    (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-{GPUS_PER_NODE - 1}]\n")
    first_job = random.SystemRandom().randrange(1, 60000)  # MASTER_PORT follows from it: not that of another cluster
    numbers = {"expiry": _CREDENTIAL_SECONDS, "cpus": CPUS_PER_NODE, "gpus": GPUS_PER_NODE, "first_job": first_job}
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, ports=_free_ports(3), **numbers))
    names = "".join(f"127.0.0.1 {name}\n" for name in ("controller", *NODES))
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(random.randbytes(128))


def _make_gpu(path: Path) -> None:
    """Make what Slurm takes for a GPU: a character device, a /dev/null of its own."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def _free_ports(count: int) -> list[int]:
    """Return free ports below both the ephemeral range and the one that slurm/common.sh takes MASTER_PORT from."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(10000, 15000)
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


def _start(folder: Path, console: int) -> subprocess.Popen[bytes]:
    namespaces = ["unshare", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
    script = _INIT.format(folder=folder, nodes=" ".join(NODES))
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *namespaces, "bash", "-c", script],
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        start_new_session=True,
    )


def _environment(folder: Path) -> dict[str, str]:
    """Return what clients and daemons need, without the settings of another Slurm around us."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}


def _processes_of(folder: Path) -> list[int]:
    """Return the processes whose environment names the cluster's configuration."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = entry.read_bytes()
        except OSError:  # gone meanwhile
            continue
        if f"SLURM_CONF={folder}/".encode() in environment and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


def _init_of(node: str, folder: Path) -> int:
    """Return the process that is PID 1 in the node's namespace."""
    for number in _processes_of(folder):
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        ids = Path(f"/proc/{number}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()
        if ids[-1] == "1" and words[0] == b"bash" and words[-2].startswith(f"hostname {node};".encode()):
            return number
    raise AssertionError(f"no process is {node}'s init")


def _wait_for(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} after {seconds:.0f} s")
        time.sleep(0.1)


class Cluster:
    """Submit to and ask a running cluster."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *words: object, check: bool = True) -> str:
        """Run one of Slurm's clients in the checkout and return what it printed."""
        result = self.attempt(*words)
        command = [str(word) for word in words]
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stderr}{self.log()}")
        return result.stdout

    def attempt(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout as a user of the cluster, however it ends."""
        return subprocess.run(
            [str(word) for word in words],
            env=_environment(self.folder) | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def submit(self, *words: object, log: Path) -> "Job":
        """Hand ``sbatch`` its words; the job's output goes to ``log``."""
        return Job(self, self.run("sbatch", "--parsable", f"--output={log}", *words).strip(), log)

    def wait_until_idle(self) -> None:
        """Wait until every node takes jobs."""
        try:
            _wait_for(lambda: self._idle_nodes() == set(NODES), 60, "not all nodes idle")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()}") from error

    def cut_power(self, node: str) -> None:
        """Kill all that runs on a node, at once and without a word."""
        (self.folder / f"power-{node}").unlink()
        os.kill(_init_of(node, self.folder), signal.SIGKILL)

    def restore_power(self, node: str) -> None:
        """Boot the node again."""
        (self.folder / f"power-{node}").touch()

    def _idle_nodes(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split())

    def log(self) -> str:
        """Return the end of what the daemons said."""
        return (self.folder / "console.log").read_text(errors="replace")[-2000:]


@dataclass(frozen=True)
class Job:
    """A submitted batch job."""

    cluster: Cluster
    number: str
    log: Path

    def facts(self) -> dict[str, str]:
        """Return what ``scontrol show job`` knows."""
        words = self.cluster.run("scontrol", "-o", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for something the job brings about; fail at once when the job ends without it."""
        deadline = time.monotonic() + seconds
        while not condition():
            has_ended = self.facts()["JobState"] in ENDED  # read before looking once more
            assert condition() or not has_ended, f"ended early: {self}"
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s: {self}"
            time.sleep(0.2)

    def wait(self, seconds: float = 120.0) -> dict[str, str]:
        """Wait until the job has ended for good; return its facts."""
        self.wait_until(lambda: self.facts()["JobState"] in ENDED, seconds)
        return self.facts()

    def signal(self, *options: str) -> None:
        """Run ``scancel`` with options, on this job."""
        self.cluster.run("scancel", *options, self.number)

    def __str__(self) -> str:
        return f"{self.facts()}\n{self.output()[-6000:]}\n{self.cluster.log()}"
