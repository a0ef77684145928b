"""The tests' own network: what it does to a connection, so that a cut in a test is one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from fix_cut import CutKind, CutNetwork
from fix_ports import HOST


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a service that answers each connection with what it is sent."""
    ending = threading.Event()

    def answer(end: socket.socket) -> None:
        with end:
            end.settimeout(0.05)
            while not ending.is_set():
                try:
                    content = end.recv(100)
                    end.sendall(content)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not content:
                    return

    def serve(listener: socket.socket) -> None:
        while not ending.is_set():
            try:
                end, _ = listener.accept()
            except TimeoutError:
                continue
            threads.append(threading.Thread(target=answer, args=(end,)))
            threads[-1].start()

    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(0.05)
        threads = [threading.Thread(target=serve, args=(listener,))]
        threads[0].start()
        yield listener.getsockname()[1]
        ending.set()
        for thread in threads:
            thread.join(10)


def asked(end: socket.socket, content: bytes) -> bytes:
    end.sendall(content)
    return end.recv(100)


def connected(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), 5)


def test_a_break_ends_what_is_open_and_takes_nothing_new(echo: int) -> None:
    with CutNetwork(echo) as network, connected(network.port) as end:
        assert asked(end, b"one") == b"one"
        network.cut(CutKind.BREAK)
        with pytest.raises((ConnectionError, AssertionError)):
            assert end.recv(100)
        with pytest.raises((ConnectionError, AssertionError)), connected(network.port) as new:
            assert asked(new, b"two")
        network.mend()
        with connected(network.port) as new:
            assert asked(new, b"three") == b"three"


def test_a_stall_lets_nothing_through_and_loses_nothing(echo: int) -> None:
    with CutNetwork(echo) as network, connected(network.port) as end:
        assert asked(end, b"one") == b"one"
        network.cut(CutKind.STALL)
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(end, b"two")
        network.mend()
        end.settimeout(5)
        assert end.recv(100) == b"two"


def test_what_is_swallowed_is_gone_and_the_connection_with_it(echo: int) -> None:
    with CutNetwork(echo) as network, connected(network.port) as end:
        assert asked(end, b"one") == b"one"
        network.cut(CutKind.SWALLOW)
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(end, b"two")
        network.mend()
        end.settimeout(5)
        with pytest.raises((ConnectionError, AssertionError)):
            assert end.recv(100)
        with connected(network.port) as new:
            assert asked(new, b"three") == b"three"
