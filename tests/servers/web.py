"""One small HTTP request function, so that helpers and tests of servers need no client library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A developer's proxy settings must never carry loopback traffic away.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Response:
    """Status, headers (names in lower case) and body of an answer, whatever its status."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 30,
) -> Response:
    """Send one request; every status is returned, OSError when there is no answer."""
    message = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)
    try:
        answer = _opener.open(message, timeout=timeout)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return Response(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())
