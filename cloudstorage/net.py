"""Decides which addresses this installation may connect to, so that a store's url cannot be used to reach inside it.

Plain Python. Private ranges are where object stores live, so they are allowed unless forbidden; link-local addresses, where
clouds keep their metadata services, never are.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA_SERVICES = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192")
)
"""Addresses outside the link-local ranges among them, at which clouds hand credentials to whoever asks."""

DEFAULT_PORTS = {"http": 80, "https": 443, "nfs": 2049}


class ForbiddenUrl(ValueError):
    """A url that must not be connected to: `what` it is about, `why` not, and the `remedy`."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what} is not allowed: {why}. {remedy}")
        self.what = what
        self.why = why
        self.remedy = remedy


class UnknownHost(ForbiddenUrl):
    """A name that does not resolve now, and so cannot be judged: later it may."""


def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of a name, by the system's resolver. Raises OSError."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def networks_of(cidrs: Sequence[str]) -> tuple[Network, ...]:
    """The allow list as settings write it; raises ValueError naming what is no network."""
    return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in cidrs)


@dataclass(frozen=True, slots=True)
class OutboundPolicy:
    """Which urls may be connected to. A name is judged by every address that it has."""

    schemes: frozenset[str] = frozenset({"http", "https", "nfs"})
    allow_loopback: bool = False
    allow_private: bool = True
    networks: tuple[Network, ...] = ()
    """If not empty, only these may be reached; what is always refused stays refused."""
    resolve: Callable[[str, int], Sequence[str]] = resolve

    def check(self, url: str) -> None:
        """Raise ForbiddenUrl if the url may not be connected to, or cannot be judged because its name does not resolve."""
        try:
            split = urlsplit(url)
            host, port = split.hostname, split.port or DEFAULT_PORTS.get(split.scheme, 0)
        except ValueError:
            raise ForbiddenUrl(repr(url), "it is no url", "Write scheme://host:port/path.") from None
        if split.scheme not in self.schemes:
            raise ForbiddenUrl(f"The scheme {split.scheme!r}", "it is not in use here", f"Use {', '.join(sorted(self.schemes))}.")
        if not host:
            raise ForbiddenUrl(repr(url), "it names no host", "Write scheme://host:port/path.")
        if split.username is not None or split.password is not None:
            raise ForbiddenUrl(f"The url of {host}", "it carries a user or password", "Put credentials into their own fields.")
        for address in self._addresses(host, port):
            self._check_address(host, address)

    def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = self.resolve(host, port)
        except (OSError, UnicodeError):
            raise UnknownHost(f"The host {host}", "its name does not resolve", "Check the name and the resolver.") from None
        if not found:
            raise UnknownHost(f"The host {host}", "its name has no address", "Check the name and the resolver.")
        return [_plain(ipaddress.ip_address(text.partition("%")[0])) for text in found]

    def _check_address(self, host: str, address: Address) -> None:
        what = f"The host {host}" if host == str(address) else f"The host {host} ({address})"
        if address in METADATA_SERVICES or address.is_link_local:
            raise ForbiddenUrl(what, "clouds keep their metadata services at such addresses", "No setting allows it.")
        if address.is_multicast or address.is_unspecified or (address.is_reserved and not address.is_loopback):
            raise ForbiddenUrl(what, "no server can have that address", "No setting allows it.")
        if address.is_loopback and not self.allow_loopback:
            raise ForbiddenUrl(what, "it is this machine itself", "Set CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK for tests and demos.")
        if not self.allow_private and not address.is_loopback and _is_private(address):
            raise ForbiddenUrl(what, "it is a private address", "Set CLOUDSTORAGE_OUTBOUND_ALLOW_PRIVATE, or use a public one.")
        if self.networks and not any(address in network for network in self.networks if network.version == address.version):
            listed = ", ".join(str(network) for network in self.networks)
            raise ForbiddenUrl(what, f"only {listed} may be reached", "Add its network to CLOUDSTORAGE_OUTBOUND_CIDRS.")


def _is_private(address: Address) -> bool:
    """Carriers' and site-local ranges as well, of which the library says otherwise."""
    return not address.is_global or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)


def _plain(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only wraps it: mapped, 6to4, Teredo and NAT64 reach the same server."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)
