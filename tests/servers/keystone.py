"""A real OpenStack Keystone on loopback (SQLite, Fernet tokens), for Keystone v3 authentication to a Swift of ours."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, Self

from tests.servers.process import ProcessGroup, ServerError, free_ports, servers_program
from tests.servers.web import request

_LAUNCHER = str(Path(__file__).with_name("keystone_process.py"))

_CONFIGURATION = """
[DEFAULT]
use_stderr = true
log_file =
public_endpoint = {url}
max_token_size = 512
[database]
connection = sqlite:///{directory}/keystone.db
sqlite_synchronous = false
[token]
provider = fernet
[fernet_tokens]
key_repository = {directory}/fernet-keys
[fernet_receipts]
key_repository = {directory}/fernet-keys
[credential]
key_repository = {directory}/credential-keys
[cache]
enabled = false
[identity]
# Four rounds of bcrypt instead of twelve: every request of a test signs in.
password_hash_rounds = 4
[oslo_policy]
enforce_scope = true
[oslo_messaging_notifications]
driver = noop
"""


class KeystoneServer:
    """Identity service with a project, a writing user, a reading user and an object-store endpoint in its catalogue.

    `username` has the role `member` on `project` and may write; `reader_username` has the role `reader`. Names are unlike
    the ids, and users and project live in a domain other than `default`, so that a client that mixes them up fails.
    """

    region = "region-one"
    domain = user_domain = project_domain = "cloud"
    project = "secondary-storage"
    username, password = "storage", "storage-password"
    reader_username, reader_password = "storage-reader", "reader-password"
    admin_username, admin_project, admin_password = "admin", "admin", "admin-password"

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._group = ProcessGroup("Keystone", self.directory / "log")
        self._port = 0
        self._ids: dict[str, Any] = {}

    @property
    def auth_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v3"

    @property
    def project_id(self) -> str:
        return str(self._ids["project"])

    @property
    def running(self) -> bool:
        return self._group.running

    def start(self, timeout: float = 180) -> Self:
        """Start; the first start on a directory makes the database, later ones find it. ServerError when it fails."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = self.directory / "ready.json"
        if ready.exists():
            # The catalogue in the database names the port.
            self._ids = json.loads(ready.read_text())
            self._port = self._ids["port"]
        else:
            (self._port,) = free_ports(1)
        (self.directory / "keystone.conf").write_text(
            _CONFIGURATION.format(directory=self.directory, url=self.auth_url.removesuffix("/v3"))
        )
        commands = [] if self._ids else self._first_commands()
        serve = [servers_program("python"), "-P", _LAUNCHER, str(self._port), *map(json.dumps, commands)]
        self._group.start("keystone", serve, env=self._environment())
        try:
            self._group.wait_until(self._answers, "Keystone answers", timeout)
            if not self._ids:
                self._ids = {"port": self._port, "project": self._make_project_and_users()}
                ready.write_text(json.dumps(self._ids))
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        self._group.stop(timeout=2)

    def kill(self) -> None:
        self._group.kill()

    def freeze(self) -> None:
        """SIGSTOP: sign-in hangs."""
        self._group.freeze()

    def thaw(self) -> None:
        self._group.thaw()

    def __enter__(self) -> Self:
        return self.start() if not self.running else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def token(self, username: str | None = None, password: str | None = None) -> str:
        """A project token, by default the writing user's."""
        user = {"name": username or self.username, "domain": {"name": self.domain}}
        project = {"name": self.project, "domain": {"name": self.domain}}
        return self._sign_in(user | {"password": password or self.password}, project)

    def change_password(self, username: str, password: str) -> None:
        """From now on only the new one signs in, and tokens that the former was good for are revoked."""
        headers = {"X-Auth-Token": self._admin_token()}
        (user,) = self._call("GET", f"/users?name={username}", headers)["users"]
        self._call("PATCH", f"/users/{user['id']}", headers, {"user": {"password": password}})

    def publish_object_store(self, url: str) -> None:
        """Put the object store into the service catalogue; `$(project_id)s` in the url is replaced by Keystone."""
        headers = {"X-Auth-Token": self._admin_token()}
        services = self._call("GET", "/services?type=object-store", headers)["services"]
        if services:
            service_id = services[0]["id"]
        else:
            body = {"service": {"type": "object-store", "name": "swift"}}
            service_id = self._call("POST", "/services", headers, body)["service"]["id"]
        for endpoint in self._call("GET", f"/endpoints?service_id={service_id}", headers)["endpoints"]:
            self._call("DELETE", f"/endpoints/{endpoint['id']}", headers)
        # Two regions: a client that ignores the region it was given may pick the one where nothing listens.
        for region, address in ((self.region, url), ("region-elsewhere", "http://127.0.0.1:9/v1/AUTH_$(project_id)s")):
            for interface in ("public", "internal"):
                endpoint = {"service_id": service_id, "interface": interface, "url": address, "region": region}
                self._call("POST", "/endpoints", headers, {"endpoint": endpoint})

    def _environment(self) -> dict[str, str]:
        # The password by environment, because the command line is readable by everyone on the machine.
        configuration = str(self.directory / "keystone.conf")
        return {"OS_KEYSTONE_CONFIG_FILES": configuration, "OS_BOOTSTRAP_PASSWORD": self.admin_password}

    def _first_commands(self) -> list[list[str]]:
        """What `keystone-manage` has to do before Keystone is served for the first time; the keys are made here."""
        bootstrap = ["--bootstrap-username", self.admin_username, "--bootstrap-project-name", self.admin_project]
        bootstrap += ["--bootstrap-region-id", self.region, "--bootstrap-public-url", self.auth_url]
        bootstrap += ["--bootstrap-internal-url", self.auth_url]
        for keys in ("fernet-keys", "credential-keys"):
            # What keystone-manage's fernet_setup and credential_setup write: a staged key and a primary one.
            (self.directory / keys).mkdir(mode=0o700, exist_ok=True)
            for name in "01":
                (self.directory / keys / name).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        file = ["--config-file", str(self.directory / "keystone.conf")]
        return [[*file, "db_sync"], [*file, "bootstrap", *bootstrap]]

    def _make_project_and_users(self) -> str:
        headers = {"X-Auth-Token": self._admin_token()}
        domain = self._call("POST", "/domains", headers, {"domain": {"name": self.domain}})["domain"]["id"]
        body: dict[str, Any] = {"project": {"name": self.project, "domain_id": domain}}
        project: str = self._call("POST", "/projects", headers, body)["project"]["id"]
        for name, password, role in (
            (self.username, self.password, "member"),
            (self.reader_username, self.reader_password, "reader"),
        ):
            body = {"user": {"name": name, "password": password, "domain_id": domain}}
            user = self._call("POST", "/users", headers, body)["user"]["id"]
            role_id = self._call("GET", f"/roles?name={role}", headers)["roles"][0]["id"]
            self._call("PUT", f"/projects/{project}/users/{user}/roles/{role_id}", headers)
        return project

    def _answers(self) -> bool:
        try:
            return request("GET", self.auth_url, timeout=5).status == 200
        except OSError:
            return False

    def _admin_token(self) -> str:
        user = {"name": self.admin_username, "domain": {"id": "default"}, "password": self.admin_password}
        return self._sign_in(user, {"name": self.admin_project, "domain": {"id": "default"}})

    def _sign_in(self, user: dict[str, Any], project: dict[str, Any]) -> str:
        identity = {"methods": ["password"], "password": {"user": user}}
        body = {"auth": {"identity": identity, "scope": {"project": project}}}
        answer = request(
            "POST",
            f"{self.auth_url}/auth/tokens",
            headers={"Content-Type": "application/json"},
            body=json.dumps(body).encode(),
        )
        if answer.status != 201:
            raise ServerError(f"Keystone refused to sign {user['name']} in: {answer.status} {answer.body!r}")
        return answer.headers["x-subject-token"]

    def _call(self, method: str, path: str, headers: dict[str, str], body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = request(method, self.auth_url + path, headers={"Content-Type": "application/json", **headers}, body=data)
        if answer.status >= 300:
            raise ServerError(f"Keystone: {method} {path} answered {answer.status} {answer.body!r}")
        return answer.json() if answer.body else None
