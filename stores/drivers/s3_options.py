"""The details of an S3 store: as CloudStack names them, checked, and parsed into what the client needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from stores.drivers.base import Option
from stores.drivers.errors import Misconfigured
from stores.drivers.s3_names import is_safe

_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
LOOPBACK = re.compile(r"^(localhost|127(\.\d+){3}|::1)$")
SIGNERS = ("AWSS3V4SignerType", "S3SignerType")

OPTIONS: tuple[Option, ...] = (
    Option("accesskey", "Access key", "The access key id.", required=True),
    Option("secretkey", "Secret key", "The secret that belongs to the access key.", required=True, secret=True),
    Option("bucket", "Bucket", "An existing bucket.", required=True),
    Option("endpoint", "Endpoint", "Host and port of the server, as s3.example.org:9000. Empty for Amazon's own."),
    Option("usehttps", "Use HTTPS", "Encrypt the connection.", kind="boolean", default="true"),
    Option("region", "Region", "The bucket's region; most servers other than Amazon's take any.", default="us-east-1"),
    Option("prefix", "Prefix", "A folder in the bucket below which everything is kept."),
    Option(
        "addressing",
        "Addressing",
        "path: endpoint/bucket. virtual: bucket.endpoint. auto: virtual for Amazon, else path.",
        kind="choice",
        default="auto",
        choices=("auto", "path", "virtual"),
    ),
    Option("connectiontimeout", "Connect timeout (ms)", "How long to wait for a connection.", kind="integer", default="10000"),
    Option("sockettimeout", "Socket timeout (ms)", "How long to wait for an answer.", kind="integer", default="60000"),
    Option("maxerrorretry", "Retries", "How often a failed request is repeated at once.", kind="integer", default="3"),
    Option("connectionttl", "Connection lifetime (ms)", "Renew connections after this time; empty for never.", kind="integer"),
    Option("usetcpkeepalive", "TCP keep-alive", "Keep idle connections alive.", kind="boolean", default="true"),
    Option("s3signer", "Signature", "Version 4, or 2 for old servers.", kind="choice", default=SIGNERS[0], choices=SIGNERS),
    Option("cabundle", "CA bundle", "File with the certificates to trust, on every worker. Empty for the system's."),
    Option("proxy", "Proxy", "http://host:port of a proxy to the endpoint. The environment's proxies are not used."),
    Option(
        "sse",
        "Encryption",
        "Ask the server to encrypt objects: AES256 (SSE-S3) or aws:kms.",
        kind="choice",
        default="none",
        choices=("none", "AES256", "aws:kms"),
    ),
    Option("ssekmskeyid", "KMS key", "The key for aws:kms; empty for the bucket's own."),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The driver's details, parsed. Timeouts are seconds here; the details carry CloudStack's milliseconds."""

    scheme: str
    host: str
    bucket: str
    prefix: str
    region: str
    access_key: str
    secret_key: str
    virtual: bool
    signer: str
    connect_timeout: float
    read_timeout: float
    retries: int
    connection_ttl: float
    keepalive: bool
    ca_bundle: str
    proxy: str
    sse: str
    kms_key: str

    @classmethod
    def parse(cls, details: Mapping[str, str]) -> Settings:
        """From details as `S3Driver.clean` returns them."""
        region = details["region"]
        host = details["endpoint"] or f"s3.{region}.amazonaws.com"
        amazon = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        return cls(
            scheme="https" if details["usehttps"] == "true" else "http",
            host=host,
            bucket=details["bucket"],
            prefix=details["prefix"],
            region=region,
            access_key=details["accesskey"],
            secret_key=details["secretkey"],
            virtual=details["addressing"] == "virtual" or (details["addressing"] == "auto" and amazon),
            signer="s3" if details["s3signer"] == "S3SignerType" else "s3v4",
            connect_timeout=int(details["connectiontimeout"]) / 1000,
            read_timeout=int(details["sockettimeout"]) / 1000,
            retries=int(details["maxerrorretry"]),
            connection_ttl=int(details["connectionttl"] or 0) / 1000,
            keepalive=details["usetcpkeepalive"] == "true",
            ca_bundle=details["cabundle"],
            proxy=details["proxy"],
            sse="" if details["sse"] == "none" else details["sse"],
            kms_key=details["ssekmskeyid"],
        )

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def urls(self) -> list[str]:
        """Every URL that will be connected to."""
        target = f"{self.scheme}://{self.bucket}.{self.host}" if self.virtual else self.endpoint
        return [self.proxy] if self.proxy else [target]

    @property
    def signs_payload(self) -> bool:
        """Over plain http only the signature keeps others from changing the bytes; on loopback there are no others."""
        return self.scheme == "http" and not LOOPBACK.match(urlsplit(self.endpoint).hostname or "")


def check_details(clean: Mapping[str, str]) -> None:
    """Raise Misconfigured for what the options alone do not forbid."""
    if clean["endpoint"] and not _HOST.fullmatch(clean["endpoint"]):
        raise Misconfigured(f"The endpoint must be host or host:port, not {clean['endpoint']!r}.", field="endpoint")
    if not _BUCKET.fullmatch(clean["bucket"]):
        raise Misconfigured(f"{clean['bucket']!r} is no valid bucket name.", field="bucket")
    if clean["prefix"] and not is_safe(clean["prefix"]):
        raise Misconfigured(f"The prefix {clean['prefix']!r} may not contain empty, . or .. folders.", field="prefix")
    if clean["ssekmskeyid"] and clean["sse"] != "aws:kms":
        raise Misconfigured("A KMS key is only used with encryption aws:kms.", field="ssekmskeyid")
    if clean["proxy"] and urlsplit(clean["proxy"]).scheme not in {"http", "https"}:
        raise Misconfigured("The proxy must be written http://host:port.", field="proxy")
    for name in ("connectiontimeout", "sockettimeout"):
        if int(clean[name]) == 0:
            raise Misconfigured(f"{name} must be more than 0 milliseconds.", field=name)


def merged(url: str, details: Mapping[str, str]) -> dict[str, str]:
    """The details with what the url and a scheme before the endpoint say; contradictions are Misconfigured."""
    given = dict(details)
    for name, value in _parts_of(url).items():
        if given.get(name, "").strip() not in {value, ""}:
            raise Misconfigured(f"The url says {name} {value!r}, the field says {given[name]!r}.", field="url")
        given[name] = value
    scheme, found, host = given.get("endpoint", "").strip().rstrip("/").partition("://")
    if found:
        https = {"https": "true", "http": "false"}.get(scheme.lower())
        if https is None or given.get("usehttps", "").strip().lower() not in {"", https}:
            raise Misconfigured(
                f"{scheme}:// does not fit: the endpoint speaks http or https, as usehttps says.", field="endpoint"
            )
        given |= {"endpoint": host, "usehttps": https}
    return given


def _parts_of(url: str) -> dict[str, str]:
    if not url.strip():
        return {}
    split = urlsplit(url.strip())
    bucket, _, prefix = split.path.strip("/").partition("/")
    if split.scheme not in {"http", "https"} or not split.netloc or not bucket or "@" in split.netloc or split.query:
        raise Misconfigured("The url must be https://endpoint/bucket or https://endpoint/bucket/prefix.", field="url")
    found = {"endpoint": split.netloc, "usehttps": "true" if split.scheme == "https" else "false", "bucket": bucket}
    return found | ({"prefix": prefix} if prefix else {})
