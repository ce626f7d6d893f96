"""The guard against the network works, or every other test could reach out unseen."""

import contextlib
import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize("host", ["example.com", "huggingface.co", b"pypi.org", "8.8.8.8"])
def test_no_name_of_another_machine_resolves(host, network_attempts):
    for resolve in (socket.gethostbyname, lambda name: socket.getaddrinfo(name, 443)):
        with pytest.raises(AssertionError, match="resolve no names"):
            resolve(host)
    network_attempts.unlink()


def test_no_connection_leaves_this_machine(network_attempts):
    for method in ("connect", "connect_ex"):
        with socket.socket() as sock, pytest.raises(AssertionError, match="other machines"):
            getattr(sock, method)(("93.184.216.34", 80))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(AssertionError, match="other machines"),
    ):
        sock.sendto(b"x", ("8.8.8.8", 53))
    with pytest.raises(AssertionError):
        socket.create_connection(("example.com", 80), timeout=1)
    network_attempts.unlink()


def test_an_attempt_is_found_out_though_the_error_was_caught(network_attempts):
    with contextlib.suppress(AssertionError):
        socket.getaddrinfo("example.com", 80)
    assert "example.com" in network_attempts.read_text()
    network_attempts.unlink()


def test_a_child_process_has_no_network_either(network_attempts):
    code = "import socket; socket.getaddrinfo('example.com', 80)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "example.com" in network_attempts.read_text()
    network_attempts.unlink()


def test_loopback_stays_open():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(("localhost", server.getsockname()[1])):
            pass
