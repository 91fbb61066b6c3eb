"""moto's S3 server in a process of its own: quick, in memory, forgetful. It accepts wrong checksums; Swift's s3api does not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

from tests.servers.process import ProcessGroup, free_ports
from tests.servers.web import request


class MotoServer:
    """An S3 endpoint where every key pair is right. What it holds is gone after stop()."""

    region = "us-east-1"
    access_key, secret_key = "moto", "moto-secret"

    def __init__(self, directory: Path) -> None:
        """`directory` takes the log."""
        self._group = ProcessGroup("moto", directory / "log")
        self._port = 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def s3_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        return self._group.running

    def start(self, timeout: float = 120) -> Self:
        """Start, again on the same port; ServerError with the log's end when that fails."""
        if not self._port:
            (self._port,) = free_ports(1)
        # Not a thread of ours: its memory would be ours, and a slow test would slow the server it measures.
        serve = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self._port)]
        self._group.start("moto", serve)
        try:
            self._group.wait_until(self._answers, "moto answers", timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def reset(self) -> None:
        """Forget every bucket."""
        request("POST", f"{self.s3_url}/moto-api/reset")

    def stop(self) -> None:
        self._group.stop(timeout=2)

    def kill(self) -> None:
        self._group.kill()

    def freeze(self) -> None:
        self._group.freeze()

    def thaw(self) -> None:
        self._group.thaw()

    def __enter__(self) -> Self:
        return self.start() if not self.running else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return request("GET", f"{self.s3_url}/moto-api/", timeout=5).status == 200
        except OSError:
            return False
