"""A slow and lossy way to an S3 server: two network namespaces, and netem on every packet between them.

The thread of the test is in the near namespace for as long as the fixture lives, and with it every process
that it starts: PostgreSQL, the daemon, a restore.  The server is in the far one.  The network of the machine
itself is not touched, and nothing leads out of the two.

Where the machine's kernel was built without netem, a program of our own stands between the two, and delays
and drops packets as netem does: netem_router.py.
"""

from __future__ import annotations

import ctypes
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import pytest
from fix_apt import AptProgram, apt_program
from fix_s3 import S3Server

_CLONE_NEWNET = 0x40000000
# RFC 2544's range for measurements: nobody's own network, and in namespaces of our own it meets none.
_NEAR, _FAR = "198.18.0.1", "198.18.1.1"
_PORT = 9000
_ROUTER = Path(__file__).with_name("netem_router.py")
_ROUTER_TIMEOUT_S = 60.0


class Link(Protocol):
    """The way between the two namespaces."""

    def shape(self, *words: str) -> None:
        """Let netem treat every packet, in each direction, as ``words`` say (tc-netem(8)), from now on."""


@dataclass(frozen=True, slots=True)
class FarServer:
    """A real S3 server, and the only way to it."""

    s3: S3Server
    link: Link


@dataclass(frozen=True, slots=True)
class _Namespaces:
    """The two namespaces by their names."""

    ip: AptProgram
    tc: AptProgram
    near: str
    far: str

    def bring_up(self, namespace: str, address: str, *route: str) -> None:
        """Give the way's device ``way`` its address, and the route to the other side."""
        for device in ("lo", "way"):
            self.ip.must("-n", namespace, "link", "set", device, "up")
        self.ip.must("-n", namespace, "address", "add", f"{address}/24", "dev", "way")
        self.ip.must("-n", namespace, "route", "add", *route)


@dataclass(frozen=True, slots=True)
class _KernelLink:
    """A veth pair, with the machine's own netem at its ends."""

    names: _Namespaces

    def open(self) -> None:
        names = self.names
        words = ("link", "add", "way", "type", "veth", "peer", "name", "way", "netns", names.far)
        names.ip.must("-n", names.near, *words)
        names.bring_up(names.near, _NEAR, "198.18.1.0/24", "dev", "way")
        names.bring_up(names.far, _FAR, "198.18.0.0/24", "dev", "way")

    def shape(self, *words: str) -> None:
        for namespace in (self.names.near, self.names.far):
            self.names.tc.must("-n", namespace, "qdisc", "replace", "dev", "way", "root", "netem", *words)


@dataclass(slots=True)
class _RouterLink:
    """Two tun devices, and a program that passes on what comes out of one into the other."""

    names: _Namespaces
    _process: subprocess.Popen[str] | None = None
    _said: queue.Queue[str] = field(default_factory=queue.Queue)

    def open(self) -> None:
        names = self.names
        self._process = subprocess.Popen(
            [sys.executable, str(_ROUTER), f"/run/netns/{names.near}", f"/run/netns/{names.far}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self._wait("router: ready")
        names.bring_up(names.near, _NEAR, "198.18.1.0/24", "dev", "way")
        names.bring_up(names.far, _FAR, "198.18.0.0/24", "dev", "way")

    def shape(self, *words: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{' '.join(words)}\n")
        self._process.stdin.flush()
        self._wait(f"router: {' '.join(words)}")

    def close(self) -> None:
        """End it.  May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _listen(self, output: IO[str]) -> None:
        for line in output:
            self._said.put(line.strip())
        self._said.put("")

    def _wait(self, answer: str) -> None:
        said: list[str] = []
        while answer not in said:
            try:
                said.append(self._said.get(timeout=_ROUTER_TIMEOUT_S))
            except queue.Empty:
                said.append("")
            assert said[-1], f"the router does not say {answer!r}: {said}"


@pytest.fixture
def far_server(s3_program: Path) -> Iterator[FarServer]:
    """An S3 server in a namespace of its own, and the test in another; the way between is good at first."""
    ip, tc = apt_program("ip", "iproute2"), apt_program("tc", "iproute2")
    if os.geteuid() != 0:
        pytest.fail("network namespaces are root's: run the tests that need apt as root", pytrace=False)
    names = _Namespaces(ip, tc, f"pitr-near-{os.getpid()}", f"pitr-far-{os.getpid()}")
    folder = Path(tempfile.mkdtemp(prefix="pitr-far-"))
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        for namespace in (names.near, names.far):
            ip.must("netns", "add", namespace)
            ending.callback(ip.must, "netns", "delete", namespace)
        link: _KernelLink | _RouterLink = _KernelLink(names)
        if not _has_netem(names):
            link = _RouterLink(names)
            ending.callback(link.close)
        link.open()
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        ending.callback(os.close, own)
        near = os.open(f"/run/netns/{names.near}", os.O_RDONLY | os.O_CLOEXEC)
        ending.callback(os.close, near)
        ending.callback(_enter, own)
        _enter(near)
        prefix = (ip.path, "netns", "exec", names.far)
        server = S3Server(s3_program, folder, _PORT, host=_FAR, prefix=prefix)
        ending.callback(server.kill)
        server.start()
        yield FarServer(server, link)


def _has_netem(names: _Namespaces) -> bool:
    """Tell whether the machine's kernel was built with netem."""
    done = names.tc.run("-n", names.near, "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "0ms")
    if done.returncode != 0:
        return False
    names.tc.must("-n", names.near, "qdisc", "delete", "dev", "lo", "root")
    return True


def _enter(namespace_fd: int) -> None:
    """Put this thread into a network namespace; os.setns is Python's only since 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
