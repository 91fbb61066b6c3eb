from __future__ import annotations

import ipaddress

import pytest

from cloudstorage.net import ForbiddenUrl, OutboundPolicy, networks_of

pytestmark = pytest.mark.unit

NAMES = {
    "s3.example.org": ["203.0.113.7", "2600:1f00::7"],
    "filer.lan": ["10.1.2.3"],
    "mixed.example.org": ["8.8.8.8", "169.254.169.254"],
    "home.example.org": ["8.8.8.8", "127.0.0.1"],
    "nowhere.example.org": [],
}


def resolve(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        if host not in NAMES:
            raise OSError("unknown name") from None
        return NAMES[host]


def policy(**changes: object) -> OutboundPolicy:
    return OutboundPolicy(resolve=resolve, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["https://8.8.8.8", "http://filer.lan:9000/x", "nfs://filer.lan/export", "http://[fd12::1]:80/", "https://172.16.0.9"]
)
def test_url_is_allowed_when_its_addresses_are_public_or_private(url: str) -> None:
    policy().check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://169.254.1.1",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://100.100.100.200/",
        "http://224.0.0.1",
        "http://[ff02::1]",
        "http://0.0.0.0:80",
        "http://[::]:80",
        "http://255.255.255.255",
        "https://mixed.example.org",
    ],
)
def test_url_is_refused_whatever_is_allowed_when_it_leads_to_a_metadata_service_or_no_server(url: str) -> None:
    generous = policy(allow_loopback=True, networks=networks_of(["0.0.0.0/0", "::/0"]))
    with pytest.raises(ForbiddenUrl) as raised:
        generous.check(url)
    assert raised.value.remedy == "No setting allows it."


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://127.9.9.9", "http://[::1]", "http://[::ffff:127.0.0.1]", "http://home.example.org"]
)
def test_loopback_is_refused_unless_allowed(url: str) -> None:
    with pytest.raises(ForbiddenUrl, match=r"this machine itself.*CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK"):
        policy().check(url)
    policy(allow_loopback=True).check(url)


@pytest.mark.parametrize(
    "url",
    ["nfs://10.0.0.1/x", "http://192.168.1.1", "http://[fd12::1]", "http://filer.lan", "http://100.64.0.1", "http://[fec0::1]"],
)
def test_private_addresses_are_refused_when_forbidden(url: str) -> None:
    with pytest.raises(ForbiddenUrl, match="private"):
        policy(allow_private=False).check(url)


def test_only_listed_networks_are_reached_when_there_is_a_list() -> None:
    listed = policy(networks=networks_of(["10.1.0.0/16", "2600::/16"]))
    listed.check("http://filer.lan")
    listed.check("http://[2600::5]")
    for url in ("http://10.2.0.1", "http://8.8.8.8", "http://s3.example.org"):
        with pytest.raises(ForbiddenUrl, match=r"only 10\.1\.0\.0/16, 2600::/16 may be reached"):
            listed.check(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "'file'"),
        ("gopher://8.8.8.8", "'gopher'"),
        ("8.8.8.8", "''"),
        ("http://", "no host"),
        ("http://user:secret@8.8.8.8", "user or password"),
        ("http://[::1", "no url"),
        ("http://8.8.8.8:99999", "no url"),
        ("http://missing.example.org", "does not resolve"),
        ("http://nowhere.example.org", "no address"),
    ],
)
def test_url_is_refused_with_its_reason_when_it_cannot_be_judged(url: str, why: str) -> None:
    with pytest.raises(ForbiddenUrl, match=why) as raised:
        policy().check(url)
    assert "secret" not in str(raised.value)


def test_numbers_that_mean_loopback_are_refused_when_resolved_by_the_system() -> None:
    for url in ("http://127.1", "http://0x7f000001", "http://2130706433", "http://localhost"):
        with pytest.raises(ForbiddenUrl):
            OutboundPolicy().check(url)


def test_networks_are_refused_when_malformed() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        networks_of(["10.0.0.0/99"])
