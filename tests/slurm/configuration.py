"""What the miniature cluster looks like: its nodes, and the slurm.conf and gres.conf that describe them.

It does not know how daemons are started or stopped.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = {f"n{number}": f"127.0.1.{number}" for number in range(1, 5)}
"""Name -> address: a service bound to one node's address is not reachable on another's, as on a real cluster."""
GPUS_PER_NODE = 8
CPUS_PER_NODE = 8
MEMORY_PER_NODE_MB = 20_000

_SLURM_CONF = """\
ClusterName=miniature
SlurmctldHost={host}({host_address})
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=900
MessageTimeout=30
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def write_configuration(folder: Path) -> None:
    """Write slurm.conf and gres.conf into `folder`, with ports that are free now."""
    host, host_address = host_name(), socket.gethostbyname(host_name())
    control_port, *node_ports = _find_free_ports(1 + len(NODES))
    nodes = "\n".join(
        # with NoInAddrAny a slurmd listens on the address of this host's name, whatever its NodeAddr says
        f"NodeName={name} NodeHostname={host} NodeAddr={host_address} Port={port} Sockets=1 "
        f"CoresPerSocket={CPUS_PER_NODE} ThreadsPerCore=1 RealMemory={MEMORY_PER_NODE_MB} Gres=gpu:{GPUS_PER_NODE}"
        for name, port in zip(NODES, node_ports, strict=True)
    )
    (folder / "slurm.conf").write_text(
        _SLURM_CONF.format(host=host, host_address=host_address, control_port=control_port, folder=folder, nodes=nodes)
    )
    gpus = [f"NodeName={name} Name=gpu File=/dev/tty[0-{GPUS_PER_NODE - 1}]\n" for name in NODES]
    (folder / "gres.conf").write_text("AutoDetect=off\n" + "".join(gpus))


def host_name() -> str:
    """Return the name by which Slurm knows this machine."""
    return socket.gethostname().partition(".")[0]


def missing_host_name() -> dict[str, str]:
    """Return name -> address of this machine where nothing resolves its own name, else nothing."""
    try:
        socket.gethostbyname(host_name())
    except socket.gaierror:
        return {host_name(): "127.0.0.1"}
    return {}


def _find_free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, below the range from which the kernel gives ports to clients."""
    with ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(range(10_000, 20_000), 1000):
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("No free ports from 10000 to 19999 on this machine.")
