"""Shows that each server, proxy and mount of this package is what the other tests take it for."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import boto3
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from keystoneauth1.exceptions.http import Unauthorized
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session
from swiftclient import ClientException, Connection

from tests.servers.process import REPOSITORY, ServerError, free_ports
from tests.servers.proxy import Answer, Corrupt, Cut, Hold
from tests.servers.swift import SwiftServer
from tests.servers.web import request

pytestmark = pytest.mark.live

BUCKET = "server-tests"


def s3_client(url: str, access_key: str, secret_key: str, *, attempts: int = 1):
    config = Config(
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": attempts, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        read_timeout=20,
    )
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=config,
    )


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return error.value.response["Error"]["Code"]


@pytest.fixture
def s3(swift_server):
    with closing(s3_client(swift_server.s3_url, swift_server.access_key, swift_server.secret_key)) as client:
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def container(swift_server):
    assert swift_server.request("PUT", "/things").status in {201, 202}
    return "/things"


class TestSwift:
    def test_gives_back_what_was_stored(self, swift_server, container):
        assert swift_server.request("PUT", f"{container}/a", body=b"hello").status == 201
        answer = swift_server.request("GET", f"{container}/a")
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers["etag"] == hashlib.md5(b"hello").hexdigest()

    def test_refuses_when_the_etag_is_wrong(self, swift_server, container):
        assert swift_server.request("PUT", f"{container}/bad", body=b"hello", headers={"ETag": "0" * 32}).status == 422
        assert swift_server.request("HEAD", f"{container}/bad").status == 404

    def test_refuses_to_overwrite_when_told_not_to(self, swift_server, container):
        once = {"If-None-Match": "*"}
        assert swift_server.request("PUT", f"{container}/once", body=b"1", headers=once).status == 201
        assert swift_server.request("PUT", f"{container}/once", body=b"2", headers=once).status == 412

    @pytest.mark.parametrize(("etag", "status"), [("0" * 32, 400), (hashlib.md5(b"part").hexdigest(), 201)])
    def test_checks_segments_of_a_large_object(self, swift_server, container, etag, status):
        swift_server.request("PUT", f"{container}/segment", body=b"part")
        manifest = json.dumps([{"path": f"{container}/segment", "etag": etag, "size_bytes": 4}]).encode()
        answer = swift_server.request("PUT", f"{container}/large?multipart-manifest=put", body=manifest)
        assert answer.status == status

    def test_reader_reads_and_may_not_write(self, swift_server, container):
        swift_server.request("PUT", f"{container}/a", body=b"hello")
        headers = {"X-Auth-Token": swift_server.token(swift_server.reader_username, swift_server.reader_key)}
        assert request("GET", f"{swift_server.storage_url}{container}/a", headers=headers).body == b"hello"
        assert request("PUT", f"{swift_server.storage_url}{container}/b", headers=headers, body=b"x").status == 403
        assert request("PUT", f"{swift_server.storage_url}/new", headers=headers).status == 403

    def test_refuses_a_wrong_key(self, swift_server):
        with pytest.raises(ServerError, match="401"):
            swift_server.token(swift_server.username, "wrong")

    @pytest.mark.parametrize("digest", ["sha256", "sha512"])
    def test_temporary_url_works_with_every_strong_digest(self, swift_server, container, digest):
        swift_server.set_temp_url_key("temporary")
        swift_server.request("PUT", f"{container}/a", body=b"hello")
        path, expires = f"/v1/{swift_server.account}{container}/a", int(time.time()) + 60
        signature = hmac.new(b"temporary", f"GET\n{expires}\n{path}".encode(), digest).hexdigest()
        url = f"{swift_server.url}{path}?temp_url_expires={expires}"
        assert request("GET", f"{url}&temp_url_sig={signature}").body == b"hello"
        assert request("GET", f"{url}&temp_url_sig={'0' * len(signature)}").status == 401

    def test_keeps_data_and_ports_when_killed_and_started_again(self, tmp_path):
        server = SwiftServer(tmp_path / "swift", listing_limit=2)
        with server:
            server.request("PUT", "/pages")
            for name in "abcd":
                assert server.request("PUT", f"/pages/{name}", body=b"kept").status == 201
            assert server.request("GET", "/pages").body == b"a\nb\nc\n"
            with closing(s3_client(server.s3_url, server.access_key, server.secret_key)) as client:
                page = client.list_objects_v2(Bucket="pages")
            assert (page["KeyCount"], page["IsTruncated"]) == (2, True)
            url = server.url
            server.kill()
            with pytest.raises(OSError, match="refused"):
                request("GET", f"{url}/healthcheck")
        with SwiftServer(tmp_path / "swift") as again:
            assert again.url == url
            assert again.request("GET", "/pages").body == b"a\nb\nc\nd\n"
            assert again.request("GET", "/pages/c").body == b"kept"

    def test_answers_nothing_while_frozen(self, swift_server):
        swift_server.freeze()
        try:
            with pytest.raises(TimeoutError):
                request("GET", f"{swift_server.url}/healthcheck", timeout=0.3)
        finally:
            swift_server.thaw()
        assert request("GET", f"{swift_server.url}/healthcheck").status == 200

    def test_says_why_when_it_cannot_start(self, tmp_path):
        (tmp_path / "log").mkdir()
        server = SwiftServer(tmp_path, key="two words = {")
        (tmp_path / "devices").write_text("in the way")
        with pytest.raises((ServerError, OSError), match="devices"):
            server.start()
        assert not server.running


class TestS3Api:
    def test_refuses_when_the_md5_is_wrong(self, s3):
        wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=BUCKET, Key="bad", Body=b"hello", ContentMD5=wrong)
        assert code(error) == "BadDigest"

    def test_refuses_when_the_crc_is_wrong(self, s3):
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=BUCKET, Key="bad", Body=b"hello", ChecksumCRC32="AAAAAA==")
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400

    def test_refuses_to_overwrite_when_told_not_to(self, s3):
        s3.delete_object(Bucket=BUCKET, Key="once")
        s3.put_object(Bucket=BUCKET, Key="once", Body=b"1", IfNoneMatch="*")
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=BUCKET, Key="once", Body=b"2", IfNoneMatch="*")
        assert code(error) == "PreconditionFailed"

    def test_takes_at_most_1000_parts(self, s3):
        upload = s3.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
        s3.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=1000, Body=b"x")
        with pytest.raises(ClientError) as error:
            s3.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=1001, Body=b"x")
        assert code(error) == "InvalidArgument"
        s3.abort_multipart_upload(Bucket=BUCKET, Key="parts", UploadId=upload)

    def test_reader_reads_and_may_not_write(self, s3, swift_server):
        s3.put_object(Bucket=BUCKET, Key="a", Body=b"hello")
        key = swift_server.reader_access_key, swift_server.reader_secret_key
        with closing(s3_client(swift_server.s3_url, *key)) as reader:
            assert reader.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"hello"
            with pytest.raises(ClientError) as error:
                reader.put_object(Bucket=BUCKET, Key="b", Body=b"x")
        assert code(error) == "AccessDenied"


class TestKeystone:
    @staticmethod
    @contextmanager
    def connection(keystone_swift, username: str, password: str):
        keystone = keystone_swift.keystone
        login = Password(
            auth_url=keystone.auth_url,
            username=username,
            password=password,
            project_name=keystone.project,
            user_domain_name=keystone.user_domain,
            project_domain_name=keystone.project_domain,
        )
        session = Session(auth=login)
        options = {"region_name": keystone.region}
        with closing(Connection(session=session, auth_version="3", os_options=options, retries=0)) as client:
            yield client
        session.session.close()

    def test_swiftclient_uploads_and_downloads_through_it(self, keystone_swift):
        keystone = keystone_swift.keystone
        with self.connection(keystone_swift, keystone.username, keystone.password) as client:
            client.put_container("c")
            client.put_object("c", "o", b"through keystone")
            assert client.get_object("c", "o")[1] == b"through keystone"
            assert client.url == keystone_swift.swift.storage_url

    def test_refuses_a_wrong_password(self, keystone_swift):
        with (
            self.connection(keystone_swift, keystone_swift.keystone.username, "wrong") as client,
            pytest.raises(Unauthorized),
        ):
            client.get_account()

    def test_reader_may_not_write(self, keystone_swift):
        keystone = keystone_swift.keystone
        with self.connection(keystone_swift, keystone.reader_username, keystone.reader_password) as client:
            client.get_account()
            with pytest.raises(ClientException) as error:
                client.put_container("new")
        assert error.value.http_status == 403

    def test_refuses_a_made_up_token(self, keystone_swift):
        answer = request("GET", keystone_swift.swift.storage_url, headers={"X-Auth-Token": "made-up"})
        assert answer.status == 401


class TestPostgres:
    def test_keeps_what_was_committed_when_killed(self, postgres_server):
        url = postgres_server.create_database("kept")
        with psycopg.connect(url) as connection:
            connection.execute("create table kept (n int)")
            connection.execute("insert into kept values (7)")
        postgres_server.kill()
        postgres_server.start()
        with psycopg.connect(postgres_server.database_url("kept")) as connection:
            assert connection.execute("select n from kept").fetchall() == [(7,)]

    def test_serves_the_database_of_its_url(self, postgres_server):
        with psycopg.connect(postgres_server.url) as connection:
            assert connection.execute("select current_database()").fetchone() == ("cloudstorage",)

    def test_says_why_when_its_user_may_not_enter(self, tmp_path):
        if os.geteuid() != 0:
            return  # then it runs as ourselves, who may enter
        from tests.servers.postgres import PostgresServer

        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(ServerError, match="may not enter"):
            PostgresServer(closed / "postgres").start()


class TestMoto:
    def test_stores_and_forgets(self, moto_server):
        with closing(s3_client(moto_server.s3_url, moto_server.access_key, moto_server.secret_key)) as client:
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="k", Body=b"hello")
            assert client.get_object(Bucket="bucket", Key="k")["Body"].read() == b"hello"
            moto_server.reset()
            assert client.list_buckets()["Buckets"] == []


@pytest.fixture
def echo():
    """Sends back what it gets; its address as a url."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (block := connection.recv(count - len(data))):
        data += block
    return data


class TestTcpProxy:
    @pytest.fixture
    def proxy(self, tcp_proxy, echo):
        return tcp_proxy(echo)

    @staticmethod
    def connect(proxy) -> socket.socket:
        return socket.create_connection((proxy.host, proxy.port), timeout=10)

    def test_passes_everything_when_there_is_no_fault(self, proxy):
        sent = os.urandom(1_000_000)
        with self.connect(proxy) as connection:
            sender = threading.Thread(target=connection.sendall, args=(sent,))
            sender.start()
            assert read_exactly(connection, len(sent)) == sent
            sender.join()
        assert proxy.bytes_passed == {"up": len(sent), "down": len(sent)}

    def test_refuses_and_takes_connections_again(self, proxy):
        with self.connect(proxy) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            proxy.refuse()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            self.connect(proxy)
        proxy.pass_through()
        with self.connect(proxy) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"

    def test_stalls_and_goes_on(self, proxy):
        with self.connect(proxy) as connection:
            proxy.stall()
            connection.sendall(b"x")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            proxy.pass_through()
            connection.settimeout(10)
            assert connection.recv(1) == b"x"

    def test_resets_after_so_many_bytes_and_so_many_times(self, proxy):
        proxy.reset_after(1000, "up", times=1)
        with self.connect(proxy) as connection:
            connection.sendall(b"x" * 999)
            assert read_exactly(connection, 999) == b"x" * 999
            connection.sendall(b"x" * 500)
            with pytest.raises(ConnectionResetError):
                read_exactly(connection, 500)
        assert proxy.bytes_passed["up"] == 1000
        with self.connect(proxy) as connection:
            connection.sendall(b"x" * 2000)
            assert read_exactly(connection, 2000) == b"x" * 2000

    def test_throttles(self, proxy):
        proxy.throttle(400_000)
        begun = time.monotonic()
        with self.connect(proxy) as connection:
            connection.sendall(b"x" * 100_000)
            assert read_exactly(connection, 100_000) == b"x" * 100_000
        assert 0.4 < time.monotonic() - begun < 5  # both directions share the rate: 200,000 bytes

    def test_resets_when_the_server_is_not_there(self, tcp_proxy):
        proxy = tcp_proxy(f"tcp://127.0.0.1:{free_ports(1)[0]}")

        def speak() -> None:
            with self.connect(proxy) as connection:
                connection.recv(1)

        with pytest.raises(ConnectionResetError):
            speak()


class TestHttpProxy:
    @pytest.fixture
    def proxy(self, http_proxy, swift_server, s3):
        return http_proxy(swift_server.s3_url)

    @pytest.fixture
    def through(self, proxy, swift_server):
        with closing(s3_client(proxy.url, swift_server.access_key, swift_server.secret_key)) as client:
            yield client

    def test_records_each_request_once_and_keeps_signatures_valid(self, proxy, through):
        through.put_object(Bucket=BUCKET, Key="a b/ü", Body=b"x" * 100_000)
        assert through.get_object(Bucket=BUCKET, Key="a b/ü")["Body"].read() == b"x" * 100_000
        through.head_object(Bucket=BUCKET, Key="a b/ü")
        with pytest.raises(ClientError):
            through.get_object(Bucket=BUCKET, Key="none")
        proxy.wait_until_idle()
        path = f"/{BUCKET}/a%20b/%C3%BC"
        seen = [(r.method, r.target, r.status, r.request_bytes, r.outcome) for r in proxy.records]
        assert seen == [
            ("PUT", path, 200, 100_000, "passed"),
            ("GET", path, 200, 0, "passed"),
            ("HEAD", path, 200, 0, "passed"),
            ("GET", f"/{BUCKET}/none", 404, 0, "passed"),
        ]
        assert [r.response_bytes for r in proxy.records][:3] == [0, 100_000, 0]
        assert all(record.seconds > 0 for record in proxy.records)

    def test_writes_a_line_per_request(self, swift_server, tmp_path):
        from tests.servers.proxy import LoggingHttpProxy

        log = tmp_path / "requests.jsonl"
        with LoggingHttpProxy(swift_server.url, log_file=log) as proxy:
            assert request("GET", f"{proxy.url}/healthcheck").body == b"OK"
            proxy.wait_until_idle()
        (line,) = [json.loads(line) for line in log.read_text().splitlines()]
        assert (line["method"], line["target"], line["status"]) == ("GET", "/healthcheck", 200)

    def test_passes_bodies_of_unknown_length(self, http_proxy, swift_server, container):
        proxy = http_proxy(swift_server.auth_url)
        blocks = [os.urandom(70_000) for _ in range(5)]
        with closing(Connection(proxy.url, swift_server.username, swift_server.key, auth_version="1", retries=0)) as client:
            client.put_object("things", "chunked", iter(blocks))
            assert client.get_object("things", "chunked")[1] == b"".join(blocks)
        (put,) = [record for record in proxy.records if record.method == "PUT"]
        assert (put.status, put.request_bytes) == (201, 350_000)

    def test_answers_in_the_servers_place_so_many_times(self, proxy, swift_server):
        rule = proxy.add_rule(lambda r: r.method == "PUT", Answer(503, {"Retry-After": "1"}), times=1)
        with closing(s3_client(proxy.url, swift_server.access_key, swift_server.secret_key, attempts=3)) as client:
            client.put_object(Bucket=BUCKET, Key="retried", Body=b"hello")
        assert rule.hits == 1
        proxy.wait_until_idle()
        assert [(r.status, r.outcome) for r in proxy.records] == [(503, "answered"), (200, "passed")]

    def test_loses_only_the_answer_when_cut_at_the_response(self, proxy, through, s3):
        s3.delete_object(Bucket=BUCKET, Key="lost")
        proxy.add_rule(lambda r: r.method == "PUT", Cut("response"))
        with pytest.raises(Exception, match=r"(?i)connection"):
            through.put_object(Bucket=BUCKET, Key="lost", Body=b"hello")
        assert s3.get_object(Bucket=BUCKET, Key="lost")["Body"].read() == b"hello"
        assert [(r.status, r.outcome) for r in proxy.records] == [(200, "cut")]

    def test_server_gets_only_the_beginning_when_cut_in_the_body(self, proxy, through, s3):
        s3.delete_object(Bucket=BUCKET, Key="half")
        proxy.add_rule(lambda r: r.method == "PUT", Cut("body", after_bytes=1000))
        with pytest.raises(Exception, match=r"(?i)connection"):
            through.put_object(Bucket=BUCKET, Key="half", Body=b"x" * 500_000)
        with pytest.raises(ClientError) as error:
            s3.head_object(Bucket=BUCKET, Key="half")
        assert code(error) == "404"
        assert [(r.status, r.request_bytes, r.outcome) for r in proxy.records] == [(None, 1000, "cut")]

    def test_server_notices_when_a_byte_is_corrupted(self, proxy, through):
        proxy.add_rule(lambda r: r.method == "PUT", Corrupt("request", offset=70_000))
        digest = base64.b64encode(hashlib.md5(b"x" * 100_000).digest()).decode()
        with pytest.raises(ClientError) as error:
            through.put_object(Bucket=BUCKET, Key="bad", Body=b"x" * 100_000, ContentMD5=digest)
        assert code(error) in {"BadDigest", "XAmzContentSHA256Mismatch"}

    def test_client_gets_one_wrong_byte_when_the_response_is_corrupted(self, proxy, through, s3):
        s3.put_object(Bucket=BUCKET, Key="good", Body=b"x" * 10)
        proxy.add_rule(lambda r: r.method == "GET", Corrupt("response", offset=3))
        assert through.get_object(Bucket=BUCKET, Key="good")["Body"].read() == b"xxx" + bytes([ord("x") ^ 0xFF]) + b"xxxxxx"

    def test_holds_a_request_until_released(self, proxy, through, s3):
        s3.delete_object(Bucket=BUCKET, Key="held")
        hold = Hold()
        proxy.add_rule(lambda r: r.method == "PUT", hold)
        put = threading.Thread(target=through.put_object, kwargs={"Bucket": BUCKET, "Key": "held", "Body": b"x"})
        put.start()
        assert hold.arrived.wait(10)
        with pytest.raises(ClientError):
            s3.head_object(Bucket=BUCKET, Key="held")
        hold.release.set()
        put.join()
        s3.head_object(Bucket=BUCKET, Key="held")


class TestBindMount:
    def test_shows_the_source(self, bind_mount):
        (bind_mount.source / "file").write_text("hello")
        assert (bind_mount.mountpoint / "file").read_text() == "hello"
        (bind_mount.mountpoint / "new").write_text("written")
        assert (bind_mount.source / "new").read_text() == "written"
        assert bind_mount.mountpoint.is_mount()

    def test_hangs_until_released(self, bind_mount):
        (bind_mount.source / "file").write_text("hello")
        bind_mount.hang()
        with subprocess.Popen(["cat", str(bind_mount.mountpoint / "file")], stdout=subprocess.PIPE) as reader:
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(0.3)
            assert bind_mount.mounted
            bind_mount.release()
            assert reader.communicate(timeout=10)[0] == b"hello"

    def test_open_file_stays_and_path_is_empty_when_taken_away(self, bind_mount):
        (bind_mount.source / "file").write_text("hello")
        with (bind_mount.mountpoint / "file").open() as file:
            bind_mount.take_away()
            assert list(bind_mount.mountpoint.iterdir()) == []
            assert file.read() == "hello"
        bind_mount.mount()
        assert (bind_mount.mountpoint / "file").read_text() == "hello"

    def test_everything_fails_when_its_process_dies(self, bind_mount):
        bind_mount.kill()
        assert bind_mount.mounted
        with pytest.raises(OSError) as error:
            os.listdir(bind_mount.mountpoint)
        assert error.value.errno == errno.ENOTCONN

    def test_is_cleaned_up_when_hung_with_a_reader_waiting(self, bind_mount):
        (bind_mount.source / "file").write_text("hello")
        bind_mount.hang()
        with subprocess.Popen(["cat", str(bind_mount.mountpoint / "file")], stderr=subprocess.DEVNULL) as reader:
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(0.2)
            bind_mount.unmount()
            assert reader.wait(10) != 0
        assert not bind_mount.mounted
        assert list(bind_mount.mountpoint.iterdir()) == []

    def test_refuses_to_write_when_mounted_read_only(self, bind_mount):
        bind_mount.mount(read_only=True)
        with pytest.raises(OSError) as error:
            (bind_mount.mountpoint / "file").write_text("x")
        assert error.value.errno == errno.EROFS


ORPHAN = """
import sys, time
from pathlib import Path
from tests.servers.mounts import BindMount
from tests.servers.process import ProcessGroup
group = ProcessGroup("orphans", Path(sys.argv[1]))
group.start("parent", ["/bin/sh", "-c", "trap '' HUP; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait"])
group.wait_until(lambda: group.log_path("parent").read_text().count("\\n") == 2, "it says its children's numbers")
if sys.argv[4] == "frozen":
    group.freeze()
mount = BindMount(Path(sys.argv[2]), Path(sys.argv[3])).mount()
mount.hang()
print(*group.log_path("parent").read_text().split(), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("state", ["running", "frozen"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_run_that_started_it_is_killed(tmp_path: Path, state: str, number: int):
    """Those that ignore that the kernel hangs up on a frozen group whose parent has died, too."""
    (tmp_path / "source").mkdir()
    arguments = [tmp_path / "log", tmp_path / "source", tmp_path / "mount", state]
    command = [sys.executable, "-c", ORPHAN, *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        grandchildren = [Path("/proc", pid) for pid in run.stdout.readline().split()]
        assert [process.exists() for process in grandchildren] == [True, True]
        run.send_signal(number)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        gone = not any(process.exists() for process in grandchildren)
        if gone and str(tmp_path / "mount") not in Path("/proc/self/mountinfo").read_text():
            break
    else:
        pytest.fail(f"of {grandchildren} and the mount, something outlives the killed run")
