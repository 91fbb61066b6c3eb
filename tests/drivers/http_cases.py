"""A server that does on each connection exactly what a test writes, and certificates to do it encrypted."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Scripted:
    """What the server saw, and where it listens."""

    url: str
    heads: list[list[str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    errors: list[Exception] = field(default_factory=list)

    def read_head(self, reader: BinaryIO) -> int | None:
        """Read one request up to its body; how long that is, None when there is no request any more."""
        lines: list[str] = []
        while (line := reader.readline()) not in {b"\r\n", b""}:
            lines.append(line.decode().rstrip("\r\n"))
        if not lines:
            return None
        self.heads.append(lines)
        lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
        return int(lengths[0]) if lengths else 0

    def read(self, reader: BinaryIO) -> bool:
        """Read one request whole; false when there is none."""
        size = self.read_head(reader)
        if size is None:
            return False
        self.bodies.append(reader.read(size))
        return True


Script = Callable[[Scripted, socket.socket, BinaryIO], None]


@contextmanager
def scripted_server(script: Script, context: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Runs `script` for each connection, in a thread of its own; the connection ends with it."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Scripted(f"{'https' if context else 'http'}://127.0.0.1:{port}")
    threads: list[threading.Thread] = []

    def serve(raw: socket.socket) -> None:
        try:
            with context.wrap_socket(raw, server_side=True) if context else raw as stream, stream.makefile("rb") as reader:
                script(server, stream, reader)
        except (ConnectionError, ssl.SSLError):
            pass  # the client's right
        except Exception as error:
            server.errors.append(error)

    def accept() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                # Else an answer could wait for an earlier piece's ACK here, and a close with a reset would take it away.
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server.connections += 1
                threads.append(threading.Thread(target=serve, args=(raw,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for thread in threads:
            thread.join(10)
    assert server.errors == []


def answering(answer: bytes = OK, times: int = 1000) -> Script:
    """Reads requests and gives the same answer to each, so many on each connection."""

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        for _ in range(times):
            if not server.read(reader):
                return
            stream.sendall(answer)

    return script


def make_certificate(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1 that nobody signed but itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swift")])
    now = datetime.now(UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    made = builder.add_extension(alternatives, critical=False).sign(private, hashes.SHA256())
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    unencrypted = serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted))
