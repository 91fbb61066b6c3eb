"""Machines of their own, as far as the network goes: namespaces that reach one address of this host and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Self

ADDRESS = "10.231.0.1"
"""Where the servers' proxies listen, on this host's loopback interface; no packet leaves the machine."""


class Namespaces:
    """`count` network namespaces, taken away again at the end."""

    def __init__(self, count: int) -> None:
        self.names = [f"cs{os.getpid() % 100000}-{number}" for number in range(1, count + 1)]

    def __enter__(self) -> Self:
        try:
            ip("addr", "add", f"{ADDRESS}/32", "dev", "lo")
            for number, name in enumerate(self.names, start=1):
                outside, inside = f"{name}o", f"{name}i"
                ip("netns", "add", name)
                ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
                ip("addr", "add", f"10.231.{number}.1/30", "dev", outside)
                ip("link", "set", outside, "up")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "addr", "add", f"10.231.{number}.2/30", "dev", inside)
                ip("-n", name, "link", "set", inside, "up")
                ip("-n", name, "route", "add", ADDRESS, "via", f"10.231.{number}.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", f"{name}o")
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("addr", "del", f"{ADDRESS}/32", "dev", "lo")

    def inside(self, name: str) -> list[str]:
        """What to put before a command so that it runs there."""
        return ["/usr/sbin/ip", "netns", "exec", name]


def ip(*arguments: str) -> None:
    subprocess.run(["/usr/sbin/ip", *arguments], check=True, capture_output=True)
