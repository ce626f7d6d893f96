"""No network: names of other machines do not resolve, and no socket leaves this one. Every attempt is written down.

Python imports a module of this name when it starts, so the guard holds in the child processes of tests too (servers,
the command line): `tests/conftest.py` puts this folder on PYTHONPATH. A library that catches the error is still found
out, by the line in the file that TUNESMITH_NETWORK_ATTEMPTS names.
"""

import ipaddress
import os
import socket
from typing import Any

ATTEMPTS = "TUNESMITH_NETWORK_ATTEMPTS"
_LOCAL_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost", "", "0.0.0.0", "::"}


class NetworkAttempt(AssertionError):
    """A test tried to reach the network."""


def _refuse(text: str) -> None:
    with open(os.environ[ATTEMPTS], "a", encoding="utf-8") as file:
        file.write(text + "\n")
    raise NetworkAttempt(text)


def _is_local(host: Any) -> bool:
    if host is None:
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        return False


def _guard_resolver(name: str) -> None:
    original = getattr(socket, name)

    def call(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            _refuse(f"{name}({host!r}): tests resolve no names")
        return original(host, *args, **kwargs)

    setattr(socket, name, call)


def _guard_connect(name: str) -> None:
    original = getattr(socket.socket, name)

    def call(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            _refuse(f"{name}({address!r}): tests open no connections to other machines")
        return original(self, address)

    setattr(socket.socket, name, call)


def _guard_sendto() -> None:
    original = socket.socket.sendto

    def call(self: socket.socket, data: Any, *rest: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(rest[-1][0]):
            _refuse(f"sendto({rest[-1]!r}): tests send nothing to other machines")
        return original(self, data, *rest)

    socket.socket.sendto = call


if ATTEMPTS in os.environ and not getattr(socket, "tunesmith_guarded", False):
    for resolver in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        _guard_resolver(resolver)
    for method in ("connect", "connect_ex"):
        _guard_connect(method)
    _guard_sendto()
    socket.tunesmith_guarded = True
