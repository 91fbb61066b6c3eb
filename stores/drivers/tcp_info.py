"""Asks the kernel who was waited for on a connection: the network between us and the other side, or the other side itself."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from stores.timing import add_request

_KNOWN = hasattr(socket, "TCP_INFO")
_SIZE = 192
"""Up to `tcpi_sndbuf_limited` of Linux's struct tcp_info: kernels since 4.10 tell so much, and never move what is there."""
_ROUND_TRIP, _ACKNOWLEDGED, _RATE_BUSY_FULL = struct.Struct("=I"), struct.Struct("=Q"), struct.Struct("=QQQ")
_SMOOTHED, _ACKED, _LEAST, _RATE = 68, 120, 148, 160
"""Where the round trip, the bytes acknowledged, the least round trip, and the rate of delivery with what follows it stand."""
_UNKNOWN = 2**32 - 1
_MICRO = 1e-6


class Observed:
    """One connection. It tells of each request what came since the last; nothing where the kernel does not say.

    Time in which the server had no room for more is not the network's, nor is that after all had arrived.
    """

    def __init__(self, stream: Any) -> None:
        """`stream`: a socket, plain or encrypted."""
        self._ask: Callable[[int, int, int], bytes] | None = getattr(stream, "getsockopt", None) if _KNOWN else None
        self._acknowledged = self._busy = self._full = 0

    def tell(self) -> None:
        """Put down the round trip, and how long the network had something to carry."""
        info = self._info()
        if len(info) < _SIZE:
            return
        (round_trip,) = _ROUND_TRIP.unpack_from(info, _LEAST)
        if round_trip == _UNKNOWN:
            (round_trip,) = _ROUND_TRIP.unpack_from(info, _SMOOTHED)
        (acknowledged,) = _ACKNOWLEDGED.unpack_from(info, _ACKED)
        rate, busy, full = _RATE_BUSY_FULL.unpack_from(info, _RATE)
        on_its_way = (busy - self._busy - (full - self._full)) * _MICRO
        if rate:  # an acknowledgement may wait for the answer: no longer than the bytes take is the network's
            on_its_way = min(on_its_way, (acknowledged - self._acknowledged) / rate + 2 * round_trip * _MICRO)
        add_request(round_trip=round_trip * _MICRO, on_its_way=max(0.0, on_its_way))
        self._acknowledged, self._busy, self._full = acknowledged, busy, full

    def _info(self) -> bytes:
        try:
            return self._ask(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE) if self._ask is not None else b""
        except OSError:
            return b""  # it is closed
