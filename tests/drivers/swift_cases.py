"""Swift in the contract suite: a real one with auth v1, behind proxies that take it away and change bytes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.servers.proxy import Corrupt

if TYPE_CHECKING:
    from tests.drivers.conftest import DriverCase


def on_swift(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    from stores.drivers.swift import SwiftDriver
    from tests.drivers.conftest import DriverCase, new_config

    server = request.getfixturevalue("swift_server")
    logging = request.getfixturevalue("http_proxy")(server.url)
    gate = request.getfixturevalue("tcp_proxy")(logging.url)
    container = f"images-{uuid.uuid4()}"
    details = {"username": server.username, "key": server.key, "container": container, "prefix": "clouds/ours"}

    @contextlib.contextmanager
    def corrupting() -> Iterator[None]:
        rule = logging.add_rule(lambda sent: sent.method == "PUT", Corrupt("request", offset=1000))
        yield
        assert rule.hits
        logging.clear_rules()

    yield DriverCase(
        SwiftDriver,
        new_config(*SwiftDriver.clean(gate.url + urlsplit(server.auth_url).path, details)),
        stop=gate.refuse,
        start=gate.pass_through,
        wrong_details={"key": "wrong"},
        corrupting=corrupting,
        small_pages=lambda driver, size: setattr(driver.session, "page_size", size),
    )
