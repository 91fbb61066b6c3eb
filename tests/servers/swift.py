"""A real OpenStack Swift on loopback, with the Swift and the S3 API, whose data outlives it on disk."""

from __future__ import annotations

import getpass
import json
import secrets
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.servers.keystone import KeystoneServer
from tests.servers.process import (
    ProcessGroup,
    ServerError,
    accepts_connections,
    free_ports,
    port_is_free,
    servers_program,
    system_program,
)
from tests.servers.web import Response, request

_LAUNCHER = str(Path(__file__).with_name("swift_process.py"))
_BACKENDS = ("account", "container", "object")
_PORTS = ("proxy", *_BACKENDS, "memcached")

# The timeouts are far above Swift's own, because two busy cores are not a broken cluster: with the default of one second
# an object whose container did not answer in time is missing from listings until a daemon that does not run here repairs it.
_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = {workers}
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
log_level = WARNING
log_udp_host = 127.0.0.1
log_udp_port = 9
max_clients = 1024
conn_timeout = 10
node_timeout = 60
container_update_timeout = 30
"""

_BACKEND = """
[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl {s3api} {auth}
    staticweb copy container-quotas slo dlo versioned_writes symlink proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 10
node_timeout = 60
recoverable_node_timeout = 60

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
allowed_digests = sha1 sha256 sha512
[filter:s3api]
use = egg:swift#s3api
location = {region}
storage_domain = localhost
max_bucket_listing = {listing_limit}
[filter:tempauth]
use = egg:swift#tempauth
{users}
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {keystone_url}
auth_url = {keystone_url}
auth_type = password
username = {service_user}
password = {service_password}
project_name = {service_project}
user_domain_id = default
project_domain_id = default
cache = swift.cache
delay_auth_decision = true
include_service_catalog = false
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = member
project_reader_roles = reader
[filter:staticweb]
use = egg:swift#staticweb
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:slo]
use = egg:swift#slo
allow_async_delete = {async_delete}
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


def _launch(*arguments: str) -> list[str]:
    # -P: the launcher's own folder must not be searched for imports, for it holds a swift.py too.
    return [servers_program("python"), "-P", _LAUNCHER, *arguments]


class SwiftServer:
    """Proxy, account, container and object server over one folder, one copy of everything.

    Without `keystone`: auth v1 (tempauth) and S3, user `test:tester`; `test:reader` may read everything and write nothing, and
    `test:second` all that the first may.
    With `keystone` (a started KeystoneServer): Keystone v3 only, no S3; user names, project and region are Keystone's, and
    the service catalogue points here. A later start on the same `directory` finds the same data.
    """

    region = "us-east-1"
    account = "AUTH_test"
    username = access_key = "test:tester"
    reader_username = reader_access_key = "test:reader"
    second_access_key, second_secret_key = "test:second", "rotated"

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 1,
        listing_limit: int = 1000,
        key: str = "testing",
        reader_key: str = "reading",
        keystone: KeystoneServer | None = None,
        async_delete: bool = True,
    ) -> None:
        """`workers`: processes each of proxy and object server. `listing_limit`: most names one S3 listing returns.
        `async_delete`: what S3 deletes leaves its segments to an expirer, which does not run here.

        Swift returns one name more: s3api sees that a listing goes on by asking Swift for one name above its own limit.
        """
        self.directory = directory.resolve()
        self.keystone = keystone
        self.key = self.secret_key = key
        self.reader_key = self.reader_secret_key = reader_key
        self._workers = workers
        self._listing_limit = listing_limit
        self._async_delete = async_delete
        self._group = ProcessGroup("Swift", self.directory / "log")
        self._ports: dict[str, int] = {}
        self._hash_suffix = ""
        if keystone is not None:
            self.account = f"AUTH_{keystone.project_id}"
            self.username, self.key = keystone.username, keystone.password
            self.reader_username, self.reader_key = keystone.reader_username, keystone.reader_password

    @property
    def port(self) -> int:
        return self._ports["proxy"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def auth_url(self) -> str:
        """Where to sign in: this server's auth v1, or Keystone's v3."""
        return self.keystone.auth_url if self.keystone else f"{self.url}/auth/v1.0"

    @property
    def storage_url(self) -> str:
        return f"{self.url}/v1/{self.account}"

    @property
    def s3_url(self) -> str:
        """Endpoint for path addressing; `http://<bucket>.localhost:<port>` is the same bucket."""
        if self.keystone is not None:
            raise ServerError("the Swift behind Keystone has no S3 API")
        return self.url

    @property
    def running(self) -> bool:
        return self._group.running

    def start(self, timeout: float = 180) -> Self:
        """Start, or start again on the same ports with the same data; ServerError with the logs' ends when that fails."""
        (self.directory / "devices" / "d1").mkdir(parents=True, exist_ok=True)
        self._load_state()
        self._write_configuration()
        self._group.start("memcached", self._memcached())
        for kind in (*_BACKENDS, "proxy"):
            self._group.start(f"{kind}-server", _launch(f"{kind}-server", str(self.directory)))
        try:
            for kind in _PORTS:
                self._group.wait_until(lambda kind=kind: accepts_connections(self._ports[kind]), f"{kind} listens", timeout)  # type: ignore[misc]
            if self.keystone is not None:
                self.keystone.publish_object_store(f"{self.url}/v1/AUTH_$(project_id)s")
            else:
                self._group.wait_until(self._let_reader_read, "the proxy stores something", timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End in good order. Data stays in the directory."""
        # Swift's servers run as long as a connection is open when asked politely, and have nothing to lose: every answered
        # write is on disk. Two seconds are enough for those under way.
        self._group.stop(timeout=2)

    def kill(self) -> None:
        """End at once (SIGKILL), in the middle of whatever it does."""
        self._group.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections are taken by the kernel and nothing ever answers."""
        self._group.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self._group.thaw()

    def __enter__(self) -> Self:
        return self.start() if not self.running else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def token(self, username: str | None = None, key: str | None = None) -> str:
        """A fresh token, by default the writing user's."""
        username, key = username or self.username, key or self.key
        if self.keystone is not None:
            return self.keystone.token(username, key)
        answer = request("GET", self.auth_url, headers={"X-Auth-User": username, "X-Auth-Key": key})
        if answer.status != 200:
            raise ServerError(f"Swift refused to sign {username} in: {answer.status}")
        return answer.headers["x-auth-token"]

    def request(
        self, method: str, path: str = "", *, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """A request as the writing user; `path` follows the storage URL: "", "/container", "/container/object"."""
        return request(method, self.storage_url + path, headers={"X-Auth-Token": self.token(), **(headers or {})}, body=body)

    def set_temp_url_key(self, key: str) -> None:
        """Set the account's key that signs temporary URLs."""
        answer = self.request("POST", headers={"X-Account-Meta-Temp-Url-Key": key})
        if answer.status != 204:
            raise ServerError(f"Swift refused the temporary URL key: {answer.status} {answer.body!r}")

    def _let_reader_read(self) -> bool:
        acl = json.dumps({"read-only": [self.reader_username]})
        try:
            return self.request("POST", headers={"X-Account-Access-Control": acl}).status == 204
        except (OSError, ServerError):
            return False

    def _memcached(self) -> list[str]:
        program = system_program("memcached", "memcached")
        options = ["-l", "127.0.0.1", "-U", "0", "-m", "32", "-c", "1024", "-t", "1"]
        return [program, *options, "-p", str(self._ports["memcached"]), "-u", getpass.getuser()]

    def _load_state(self) -> None:
        # Kept: the ports (rings name them) and the hash suffix (it decides where every object lies).
        state = self.directory / "state.json"
        if state.exists():
            kept = json.loads(state.read_text())
            self._ports, self._hash_suffix = kept["ports"], kept["hash_suffix"]
            # The last processes of a run that was just killed may need a moment to let go of their ports.
            deadline = time.monotonic() + 3
            while not (free := all(map(port_is_free, self._ports.values()))) and time.monotonic() < deadline:
                time.sleep(0.05)
            if free:
                return
        # With one device the rings place everything alike whatever the port, so new rings find the old data.
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._hash_suffix = self._hash_suffix or secrets.token_hex(16)
        self._write_swift_conf()
        rings = [f"{kind}={self._ports[kind]}" for kind in _BACKENDS]
        built = subprocess.run(
            _launch("rings", str(self.directory), *rings),
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise ServerError(f"Swift's rings could not be built:\n{built.stderr}")
        state.write_text(json.dumps({"ports": self._ports, "hash_suffix": self._hash_suffix}, indent=2))

    def _write_swift_conf(self) -> None:
        (self.directory / "swift.conf").write_text(
            f"[swift-hash]\nswift_hash_path_suffix = {self._hash_suffix}\n"
            # One more than a page: the S3 API asks for one name beyond its own to know whether there are more.
            f"[swift-constraints]\ncontainer_listing_limit = {self._listing_limit + 1}\n"
            "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
        )

    def _write_configuration(self) -> None:
        self._write_swift_conf()
        common = {"user": getpass.getuser(), "directory": self.directory}
        for kind in _BACKENDS:
            # 0 workers: the server does the work itself instead of forking one child that would.
            workers = self._workers if kind == "object" and self._workers > 1 else 0
            text = (_COMMON + _BACKEND).format(kind=kind, port=self._ports[kind], workers=workers, **common)
            (self.directory / f"{kind}-server.conf").write_text(text)
        keystone = self.keystone
        text = (_COMMON + _PROXY).format(
            port=self._ports["proxy"],
            workers=self._workers if self._workers > 1 else 0,
            **common,
            memcached=self._ports["memcached"],
            region=self.region,
            listing_limit=self._listing_limit,
            async_delete=self._async_delete,
            s3api="" if keystone else "s3api",
            auth="authtoken keystoneauth" if keystone else "tempauth",
            users=f"user_test_tester = {self.key} .admin\nuser_test_reader = {self.reader_key}\n"
            f"user_test_second = {self.second_secret_key} .admin",
            keystone_url=keystone.auth_url if keystone else "",
            service_user=keystone.admin_username if keystone else "",
            service_password=keystone.admin_password if keystone else "",
            service_project=keystone.admin_project if keystone else "",
        )
        (self.directory / "proxy-server.conf").write_text(text)
