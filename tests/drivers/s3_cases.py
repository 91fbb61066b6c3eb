"""S3 in the contract suite: on moto, which is quick and verifies nothing, and on a real Swift's s3api, which verifies."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import boto3
import pytest
from botocore.client import Config

from stores.drivers.base import DriverEnvironment, MiB, StoreConfig
from stores.drivers.s3 import S3Driver
from tests.servers.proxy import Answer, Corrupt, HttpRequest, LoggingHttpProxy

if TYPE_CHECKING:
    from tests.drivers.conftest import DriverCase

QUICK = {"usehttps": "false", "maxerrorretry": "0", "connectiontimeout": "5000", "sockettimeout": "30000"}


class S3Server(Protocol):
    access_key: str
    secret_key: str

    @property
    def s3_url(self) -> str: ...


def administer(server: S3Server) -> Any:
    """A client of our own, to arrange what the driver shall meet."""
    return boto3.client(
        "s3",
        endpoint_url=server.s3_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


def new_bucket(server: S3Server) -> str:
    name = f"images-{uuid.uuid4()}"
    client = administer(server)
    client.create_bucket(Bucket=name)
    client.close()
    return name


def details_of(server: S3Server, bucket: str, **more: str) -> dict[str, str]:
    keys = {"accesskey": server.access_key, "secretkey": server.secret_key}
    return {"bucket": bucket, "endpoint": server.s3_url.removeprefix("http://"), **keys, **QUICK, **more}


def _case(request: pytest.FixtureRequest, server: S3Server, **more: Any) -> DriverCase:
    from tests.drivers.conftest import DriverCase, new_config

    logging = request.getfixturevalue("http_proxy")(server.s3_url)
    gate = request.getfixturevalue("tcp_proxy")(logging.url)
    details = details_of(server, new_bucket(server), prefix=more.pop("prefix"), endpoint=gate.url.removeprefix("http://"))
    config = new_config("", details)

    @contextlib.contextmanager
    def corrupting() -> Iterator[None]:
        rule = logging.add_rule(lambda sent: sent.method == "PUT", Corrupt("request", offset=1000))
        yield
        assert rule.hits
        logging.clear_rules()

    return DriverCase(
        S3Driver,
        config,
        part_size=5 * MiB,  # both servers refuse smaller ones but the last
        stop=gate.refuse,
        start=gate.pass_through,
        corrupting=corrupting,
        small_pages=lambda driver, size: setattr(driver, "page_size", size),
        **more,
    )


def on_moto(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    # moto takes every key pair, and answers 500 to a part of an aborted upload.
    lacks = frozenset({"tokens of pending uploads", "refusing wrong credentials", "telling that an upload is gone"})
    yield _case(request, request.getfixturevalue("moto_server"), prefix="", lacks=lacks)


def on_swift(request: pytest.FixtureRequest) -> Iterator[DriverCase]:
    lacks = frozenset({"tokens of pending uploads"})
    server = request.getfixturevalue("swift_server")
    yield _case(request, server, prefix="clouds/ours", lacks=lacks, wrong_details={"secretkey": "wrong"})


# --- a place for tests of S3 alone -------------------------------------------------------------------------------------


def config_of(details: dict[str, str], **environment: Any) -> StoreConfig:
    return StoreConfig("", details, "our-store", "our-cloud", environment=DriverEnvironment(**environment))


@dataclass
class Place:
    """A bucket on a server behind a proxy that logs and answers in its place."""

    server: Any
    proxy: LoggingHttpProxy
    bucket: str
    admin: Any
    facts: dict[str, object] | None = None

    def driver(self, *, facts: dict[str, object] | None = None, direct: bool = False, **details: str) -> S3Driver:
        host = self.server.s3_url if direct else self.proxy.url
        config = config_of(details_of(self.server, self.bucket, endpoint=host.removeprefix("http://")) | details)
        return S3Driver(replace(config, facts=facts or {}))

    def sees(self, header: str) -> list[str | None]:
        """From now on, the header of each PUT and POST."""
        seen: list[str | None] = []

        def look(sent: HttpRequest) -> bool:
            if sent.method in {"PUT", "POST"}:
                seen.append(sent.headers.get(header))
            return False

        self.proxy.add_rule(look, Answer(500))
        return seen


def place_on(server: Any, http_proxy: Callable[[str], LoggingHttpProxy]) -> Place:
    return Place(server, http_proxy(server.s3_url), new_bucket(server), administer(server))


@pytest.fixture(name="moto")
def moto_place(moto_server: Any, http_proxy: Callable[[str], LoggingHttpProxy]) -> Any:
    place = place_on(moto_server, http_proxy)
    yield place
    place.admin.close()


@pytest.fixture(name="swift")
def swift_place(swift_server: Any, http_proxy: Callable[[str], LoggingHttpProxy]) -> Any:
    place = place_on(swift_server, http_proxy)
    yield place
    place.admin.close()


def error(status: int, code: str, message: str = "Said the server.") -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())
