"""Addresses and ports of a node: which address others reach it by, which port bands are free, who is meant by GPU 2.

It opens sockets only to test them.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence

from erhpc.errors import ProcessError
from erhpc.plan.ports import RENDEZVOUS_PORT, PortMap

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"
LOCAL_DEVICES_VARIABLE = "ERHPC_VISIBLE_DEVICES"
"""submitit's local executor knows GPU numbers only; ids (UUIDs, MIG) travel beside it."""
_SIOCGIFADDR = 0x8915


def resolve(host: str) -> str:
    """IPv4 address of a host name.

    Raises:
        ProcessError: the name does not resolve on this node.
    """
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ProcessError(f"node name {host!r} does not resolve here: {error}. Set cluster.interface.") from error


def is_loopback(address: str) -> bool:
    """Whether an address is reachable from its own node only."""
    return ipaddress.ip_address(address).is_loopback


def read_interface_address(interface: str) -> str:
    """IPv4 address of a network interface.

    Raises:
        ProcessError: this node has no such interface, or it has no IPv4 address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
        except OSError as error:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ProcessError(
                f"cluster.interface={interface!r} has no IPv4 address on {socket.gethostname()}. Present: {names}."
            ) from error
    return socket.inet_ntoa(answer[20:24])


def choose_listen_address(hostnames: Sequence[str]) -> str:
    """Where rank 0 listens: loopback when all nodes are this machine, every interface otherwise."""
    if len(hostnames) == 1:
        return LOOPBACK
    addresses = [resolve(name) for name in hostnames]
    return addresses[0] if all(is_loopback(address) for address in addresses) else ANY_ADDRESS


def choose_own_address(
    *, node: str, shares_machine: bool, interface: str | None, link_address: str, coordinator_address: str
) -> str:
    """The address under which the other nodes reach this one.

    A run on one machine stays on loopback; else a configured interface wins. Otherwise it is what the node's own name
    means, unless that is loopback (as in many /etc/hosts) while rank 0's is not: then the address that reaches rank 0.

    Raises:
        ProcessError: the interface or the name means nothing on this node.
    """
    if shares_machine:
        return LOOPBACK
    if interface is not None:
        return read_interface_address(interface)
    own = resolve(node)
    return link_address if is_loopback(own) and not is_loopback(coordinator_address) else own


def is_free(address: str, port: int) -> bool:
    """Whether a server could bind this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def find_free_bands(ports: PortMap, bands: Sequence[int], address: str) -> list[int]:
    """Those bands of which every port is free here; the rendezvous port is bound already and not asked for."""
    return [
        band
        for band in bands
        if all(is_free(address, ports.base(band) + offset) for offset in range(RENDEZVOUS_PORT + 1, ports.width))
    ]


def find_visible_devices(environment: Mapping[str, str]) -> str | None:
    """The GPUs that the job was given: by Slurm, or for a local run by whoever launched it."""
    return environment.get(LOCAL_DEVICES_VARIABLE, environment.get("CUDA_VISIBLE_DEVICES"))


def slice_devices(inherited: str | None, gpus: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES of one process: its share of what the job was given (indices, UUIDs or MIG ids).

    Raises:
        ProcessError: the job was given fewer GPUs than the plan uses.
    """
    devices = [device for device in (inherited or "").split(",") if device]
    if gpus and max(gpus) >= len(devices):
        raise ProcessError(
            f"the plan uses GPU {max(gpus)} of this node and the job was given {len(devices)} "
            f"(CUDA_VISIBLE_DEVICES={inherited!r}). Does the partition grant --gpus-per-node?"
        )
    return ",".join(devices[gpu] for gpu in gpus)


def extend_no_proxy(environment: Mapping[str, str], hosts: Sequence[str]) -> dict[str, str]:
    """NO_PROXY in both spellings with the run's nodes added: sites export proxies that must not see this traffic."""
    present = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    names = [name for name in present.split(",") if name]
    merged = ",".join(dict.fromkeys([*names, "localhost", LOOPBACK, *hosts]))
    return {"NO_PROXY": merged, "no_proxy": merged}
