"""Where the machines of a run find each other: a key-value store on the machine that began it.

    with opened(invitation, address="10.0.0.1:29500") as meeting: ...     # the machine that begins the run
    meeting = found("10.0.0.1:29500", patience=60)                        # each of the others

What lives here: the store (torch's TCPStore), what each machine reads there first, and torch's rendezvous over it. What
does not: starting processes (`train.agents`), what they do.

The store listens on its one address and on no other: torch's own way to make one listens on all. Whoever reaches it
can take part in the run, and with that run code, as under `torchrun`; a run on one machine keeps it on loopback.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta

import psutil
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler

from tunesmith.cluster import is_loopback
from tunesmith.errors import TrainingError

LOOPBACK = "127.0.0.1"
INVITATION = "invitation"
STORE_SECONDS = 300
"""How long a machine waits for what another one is about to say."""
CONNECT_SECONDS = 10
"""How long it waits for the store itself, which answers at once."""
POLL_SECONDS = 1.0
BACKLOG = 1024
"""Connections that may wait to be taken: all processes of a large run come at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What a machine must know to take part."""

    run: str
    """A name that no other run has."""
    machines: int
    processes: int
    """Processes of each machine."""
    request: str = ""
    """What the processes are to do: a file that every machine sees under this path."""
    code: tuple[str, ...] = ()
    """What the results depend on; another machine must have the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """The store as one machine sees it."""

    invitation: Invitation
    store: TCPStore
    host: str
    port: int
    own_address: str
    """The address of this machine from which it reaches the store."""

    def rendezvous(self, *, patience: float) -> DynamicRendezvousHandler:
        """Return torch's rendezvous of all machines, each round of which takes at most `patience` seconds."""
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=f"{self.host}:{self.port}",
            run_id=self.invitation.run,
            min_nodes=self.invitation.machines,
            max_nodes=self.invitation.machines,
            local_addr=self.own_address,
            join_timeout=int(patience),
        )
        return create_handler(self.store, C10dRendezvousBackend(self.store, self.invitation.run), parameters)


@contextlib.contextmanager
def opened(invitation: Invitation, *, address: str | None) -> Iterator[Meeting]:
    """Open a meeting at `HOST:PORT` of this machine, or on loopback. Raises `TrainingError` where that is not free."""
    host, port = (LOOPBACK, 0) if address is None else split_address(address)
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        raise TrainingError(
            "the machines of the run cannot meet at this address",
            where="train.parallel.machines.address",
            expected="an address of the machine that runs `tunesmith run`, with a free port",
            found=f"{address}: {error.strerror or error}",
        ) from error
    bound, port = listener.getsockname()[:2]
    if is_loopback(bound) and not is_loopback(host):
        listener.close()
        raise TrainingError(
            "other machines cannot reach this address: here its name stands for this machine alone",
            where="train.parallel.machines.address",
            expected="the address of this machine in the network of the others, as a number",
            found=f"{host} is {bound}",
        )
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=STORE_SECONDS),
        master_listen_fd=listener.detach(),
    )
    store.set(INVITATION, json.dumps(asdict(invitation)))
    yield Meeting(invitation=invitation, store=store, host=host, port=port, own_address=address_towards(host))


def found(address: str, *, patience: float) -> Meeting | None:
    """Return the meeting at an address, `None` where nobody listens within `patience` seconds.

    Raises `TrainingError` for an address that is none, and where something else than a run listens.
    """
    host, port = split_address(address)
    deadline = time.monotonic() + patience
    while not _listens(host, port):
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
        fields = json.loads(store.get(INVITATION))
        invitation = Invitation(**fields | {"code": tuple(fields["code"])})
        store.set_timeout(timedelta(seconds=STORE_SECONDS))
    except (DistError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(
            "what listens there is no run of this tunesmith",
            where=address,
            expected="train.parallel.machines.address of the recipe",
            found=str(error).splitlines()[0],
        ) from error
    return Meeting(invitation=invitation, store=store, host=host, port=port, own_address=address_towards(host))


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises `TrainingError` for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise TrainingError("this is no address", where=address, expected="HOST:PORT, such as 10.0.0.1:29500")
    return host.strip("[]"), int(port)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=POLL_SECONDS).close()
    except OSError:
        return False
    return True


def address_towards(host: str) -> str:
    """Return the address that this machine has in the network of `host`. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own: str = probe.getsockname()[0]
    return own


def interface_towards(host: str) -> str | None:
    """Return the name of the network interface through which this machine reaches `host`; `None` where it has none."""
    own = address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return name
    return None
