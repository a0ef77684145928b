"""A way between two network namespaces that treats packets as it is told: netem's delay and loss.

Usage: netem_router.py NEAR FAR, two files of /run/netns.  Makes the device ``way`` in each (tun(4)), and
reads words of tc-netem(8) by the line, ``delay 80ms loss 1%``, which it answers.  fix_netem.py starts it.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000
# linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES_MAX = 65536
# As netem: what does not fit into its queue is lost.
_QUEUE_MAX = 1000
_SEED = 21


@dataclass(frozen=True, slots=True)
class Shape:
    """What happens to each packet, in each direction."""

    delay_s: float = 0.0
    loss: float = 0.0

    @classmethod
    def parse(cls, words: list[str]) -> Shape:
        """Read pairs of words.  Raises ValueError, KeyError for others than these."""
        given = dict(zip(words[::2], words[1::2], strict=True))
        delay, loss = given.pop("delay", "0ms"), given.pop("loss", "0%")
        if given or not delay.endswith("ms") or not loss.endswith("%"):
            raise ValueError(f"only delay in ms and loss in %: {words}")
        return cls(float(delay.removesuffix("ms")) / 1000, float(loss.removesuffix("%")) / 100)


def open_device(namespace: str) -> int:
    """Make ``way`` in a namespace; it lives as long as its file is open."""
    place = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(place, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
    os.close(place)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"way", _IFF_TUN | _IFF_NO_PI))
    return device


def pass_on(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError:
        # The other side is not up, or full: a packet may be lost.
        return


def route(near: int, far: int) -> None:
    """Pass packets on until the words end."""
    other = {near: far, far: near}
    shape, chance, numbers = Shape(), random.Random(_SEED), itertools.count()
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        left_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([near, far, 0], [], [], left_s)
        if 0 in readable:
            line = sys.stdin.readline()
            if not line:
                return
            shape = Shape.parse(line.split())
            print(f"router: {line.strip()}", flush=True)
        now = time.monotonic()
        for device in (one for one in readable if one != 0):
            packet = os.read(device, _PACKET_BYTES_MAX)
            if chance.random() >= shape.loss and len(waiting) < _QUEUE_MAX:
                heapq.heappush(waiting, (now + shape.delay_s, next(numbers), other[device], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(waiting)
            pass_on(device, packet)


if __name__ == "__main__":
    devices = [open_device(namespace) for namespace in sys.argv[1:]]
    print("router: ready", flush=True)
    route(*devices)
