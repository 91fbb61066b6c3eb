"""The commands that move a cloud: each ends with the code that its outcome has."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from cloudstorage.commands import EXIT_CODES, bytes_from, human_bytes, human_seconds
from cloudstorage.errors import Invalid
from cloudstorage.models import AuditEvent
from migration.models import Conversion, Drain, Preflight
from stores.models import ImageStore, Transfer, Worker, WorkerReach
from stores.states import TransferState
from tests.api.test_migration import run as run_drain
from tests.fakes.memory import MemoryDriver, server_at

pytestmark = [pytest.mark.db, pytest.mark.django_db]

PLACE = ["use_object_store", "--provider", "Memory", "--url", "memory://objects", "--name", "objects"]


@pytest.fixture
def filled(region):
    region.template("web", "east", "west")
    full = region.snapshot("full", "west")
    region.snapshot("delta", "west", parent=full)
    region.volume("data", "east")
    return region


@pytest.mark.django_db(transaction=True)  # a worker looks at the database's clock, which stands still in a transaction
def test_whole_job_from_the_command_line(run, filled):
    refused = run(*PLACE, "--yes")
    assert (refused.code, "preflight" in refused.err) == (4, True)
    told = run(*PLACE, "--preflight-only")
    assert told.code == 0, told.err
    assert "0 blockers" in told.out
    assert "zone east: " in told.out
    assert "not checked: " in told.out
    planned = run(*PLACE, "--dry-run")
    assert planned.code == 0, planned.err
    assert "nfs-east becomes ImageCache" in planned.out
    assert "nothing was changed" in planned.out
    assert not Conversion.objects.exists()
    done = run(*PLACE, "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json()["counts"]["promised"] == {"template": 1, "snapshot": 2, "volume": 1}
    assert run(*PLACE, "--yes").code == 4

    planned = run("migration_plan", "--concurrency", "3", "--bandwidth", "100M", "--json")
    assert planned.code == 0, planned.err
    assert planned.json()["items"] == 4
    row = Drain.objects.get()
    assert row.batch.bandwidth == 100_000_000
    assert run("migration_start", "--json").json()["state"] == "Canary"
    run_drain(row)
    followed = run("migration_status", "--follow", "--json")
    assert followed.code == 0, followed.err
    last = followed.lines()[-1]
    assert (last["state"], last["percent"], last["items"]["proven"]) == ("Finished", 100.0, 4)
    assert "4 of 4 proven" in run("migration_status").out
    checked = run("migration_verify", "--wait", "--json")
    assert (checked.code, checked.json()["items_checked"], checked.json()["differences"]) == (0, 4, 0)


@pytest.mark.django_db(transaction=True)  # a worker looks at the database's clock, which stands still in a transaction
def test_differences_are_named_and_the_exit_code_is_10(run, filled):
    run(*PLACE, "--yes", "--override", "preflight-absent")
    run("migration_plan")
    run("migration_start")
    run_drain(Drain.objects.get())
    server = server_at("memory://objects")
    key, other = [key for key in server.objects if not key.startswith(".cs-")][:2]
    info, data = server.objects[key]
    server.objects[key] = (info, bytes(reversed(data)))
    ended = run("migration_verify", "--wait")
    assert ended.code == 10
    assert f"content differs: {key}" in ended.out
    assert "content differs (promised) -> It is a promise again" in ended.out
    del server.objects[other]
    listed = run("migration_verify", "--wait", "--listing", "--store", "objects", "--json")
    assert (listed.code, listed.json()["findings"][0]["path"], listed.json()["findings"][0]["problem"]) == (10, other, "missing")
    queued = run("migration_verify", "--sample", "10", "--json")
    assert (queued.code, queued.json()["state"]) == (0, "Queued")


def test_verification_is_refused_when_it_cannot_be_made(run, filled):
    assert run("migration_verify").code == 3
    run(*PLACE, "--yes", "--override", "preflight-absent")
    assert run("migration_verify", "--sample", "0").code == 2
    assert run("migration_verify", "--store", "other").code == 3
    server_at("memory://objects").available = False
    assert run("migration_verify", "--wait").code == 5


def test_blocker_of_the_preflight_makes_its_exit_code_4(run, filled):
    server_at("memory://objects").password = "another"
    ended = run(*PLACE, "--preflight-only")
    assert (ended.code, "[object-store]" in ended.out) == (4, True)
    assert Preflight.objects.get().blockers == 1
    found = run(*PLACE, "--preflight-only", "--json")
    assert (found.code, found.json()["blockers"]) == (4, 1)


def test_conversion_asks_before_it_changes_the_region(run, filled, monkeypatch):
    run(*PLACE, "--preflight-only")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    ended = run(*PLACE)
    assert (ended.code, "--yes" in ended.err) == (2, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "no")
    assert run(*PLACE).code == 2
    assert not Conversion.objects.exists()
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert run(*PLACE).code == 0
    assert Conversion.objects.exists()


@pytest.mark.parametrize(
    ("args", "code"),
    [(["--provider", "Ceph"], 2), (["--provider", "NFS", "--url", "nfs://h/x"], 2), (["--provider", "Memory", "--url", "x"], 2),
     (["--provider", "Memory", "--url", "memory://o", "--name", "nfs-east"], 4), (["--provider", "S3", "--detail", "secretkey=x"], 2),
     (["--provider", "Memory", "--url", "memory://o", "--dry-run", "--preflight-only"], 2)],
)  # fmt: skip
def test_conversion_is_refused_and_nothing_changes(run, filled, args, code):
    ended = run("use_object_store", *args, "--yes")
    assert ended.code == code, ended.err
    assert not Conversion.objects.exists()
    assert set(ImageStore.objects.values_list("role", flat=True)) == {"Image"}


def test_commands_say_so_when_there_is_nothing_to_drive(run, filled):
    assert run("migration_plan").code == 4
    for name in ("start", "pause", "resume", "cancel", "retry", "limits", "status"):
        ended = run(f"migration_{name}", *(["--concurrency", "2"] if name == "limits" else []))
        assert (ended.code, "migration_plan" in ended.err) == (3, True), name


def test_drain_obeys_and_refuses_what_its_state_forbids(run, cloud):
    assert run("migration_pause").code == 4
    assert "Possible now: Start, Cancel" in run("migration_pause").err
    assert run("migration_start").code == 0
    assert run("migration_pause", "--json").json()["state"] == "Paused"
    paused = run("migration_status", "--follow", "--json")
    assert (paused.code, paused.lines()[-1]["allowed"]) == (4, ["Resume", "Cancel", "Retry"])
    assert run("migration_resume", "--drain", str(cloud.drain.uuid)).code == 0
    assert run("migration_cancel").code == 0
    assert run("migration_cancel").code == 4
    assert run("migration_status", "--drain", "nonsense").code == 3
    assert run("migration_plan").code == 0
    assert run("migration_plan").code == 4


def test_limits_change_what_is_given_only(run, cloud, region):
    ended = run("migration_limits", "--bandwidth", "1.5MiB", "--read-limit", "nfs-east=10M", "--json")
    assert ended.code == 0, ended.err
    assert ended.json() == {"id": str(cloud.drain.uuid), "concurrency": 8, "bandwidth": 1572864, "window": "", "time_zone": ""}
    assert ImageStore.objects.get(name="nfs-east").read_limit == 10_000_000
    assert run("migration_limits", "--bandwidth", "none", "--window", "22:00-06:00").code == 0
    another_day = (timezone.now() + timedelta(days=3)).strftime("%a")
    assert run("migration_limits", "--window", f"{another_day} 00:00-24:00", "--time-zone", "Asia/Kathmandu").code == 0
    closed = run("migration_status").out
    assert f"window  {another_day} 00:00-24:00 (Asia/Kathmandu), closed now, opens {another_day} " in closed
    assert run("migration_limits", "--window", "00:00-24:00").code == 0
    assert "window  00:00-24:00 (Asia/Kathmandu), open now" in run("migration_status").out
    assert run("migration_limits", "--window", "always", "--read-limit", "nfs-east=none").code == 0
    assert ImageStore.objects.get(name="nfs-east").read_limit is None
    for wrong, code in (
        ([], 2), (["--bandwidth", "fast"], 2), (["--window", "late"], 2), (["--concurrency", "0"], 2),
        (["--read-limit", "nfs-east"], 2), (["--read-limit", "other=1M"], 3),
    ):  # fmt: skip
        assert run("migration_limits", *wrong).code == code, wrong


def test_finished_drain_with_failures_ends_with_6_until_they_are_retried(run, cloud):
    Transfer.objects.update(state=TransferState.FAILED, error="no space", error_cause="full", remedy="Add space.")
    Drain.objects.update(state="Finished")
    told = run("migration_status")
    assert told.code == 6
    assert "4 x full: no space" in told.out
    assert "-> Add space." in told.out
    assert run("migration_status", "--follow", "--json").code == 6
    assert run("migration_retry", "--json").json()["count"] == 4
    assert run("migration_status").code == 0


def test_what_failed_of_one_cause_is_retried_and_a_wrong_name_is_answered_with_the_right_ones(run, cloud):
    Transfer.objects.update(state=TransferState.FAILED, error="no space", error_cause="full")
    Transfer.objects.filter(kind="volume").update(error_cause="access-denied")
    Drain.objects.update(state="Finished")
    assert run("migration_retry", "--cause", "ful").out.endswith("what failed has the causes: access-denied, full\n")
    assert run("migration_retry", "--cause", "access-denied", "--json").json()["count"] == 1
    assert "0 items of drain" in run("migration_retry", "--cause", "access-denied").out
    assert set(Transfer.objects.filter(state=TransferState.FAILED).values_list("error_cause", flat=True)) == {"full"}


def test_bar_is_drawn_on_a_terminal_only(run, cloud, monkeypatch):
    Drain.objects.update(state="Paused")
    told = run("migration_status", "--follow")
    assert "\x1b" not in told.out
    assert "0 of 4 proven" in told.out


def test_command_line_is_interrupted_with_130(run, cloud, monkeypatch):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    run("migration_start")
    monkeypatch.setattr("migration.management.commands.migration_status.time.sleep", interrupt)
    ended = run("migration_status", "--follow", "--json")
    assert ended.code == 130
    assert json.loads(ended.out)["state"] == "Canary"


# --- doctor ----------------------------------------------------------------------------------------------------------


def lines(ended) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in ended.json()["checks"]:
        found.setdefault(check["name"], []).append(check["status"])
    return found


def test_doctor_is_content_with_a_healthy_installation(run, cloud):
    for worker in Worker.objects.all():
        WorkerReach.objects.bulk_create(
            WorkerReach(worker=worker, store=store, ok=True) for store in ImageStore.objects.exclude(reach__worker=worker)
        )
    run("migration_start")
    ended = run("doctor", "--json")
    assert ended.code == 0, ended.out
    assert "problem" not in str(lines(ended))
    assert set(lines(ended)) >= {"database", "clock", "key ring", "settings", "queue", "workers", "reach", "stores", "conversion"}


def test_doctor_names_the_command_for_each_thing_that_is_wrong(run, cloud, settings, tmp_path):
    Worker.objects.update(heartbeat="2026-01-01T00:00:00Z")
    server_at("memory://objects").available = False
    Transfer.objects.filter(pk=cloud.transfer.pk).update(state=TransferState.FAILED, swept=False)
    cloud.template.refs.filter(store__name="objects").update(ref_cnt=7)
    settings.ALLOWED_HOSTS = ["*"]
    ended = run("doctor")
    assert ended.code == 6
    for expected in (
        "problem  workers: No worker is running, and transfers wait.\n          -> manage.py worker",
        "problem  stores: objects is not reached from here",
        "manage.py store_check 'objects'",
        "warning  conversion: ",
        "-> manage.py migration_start",
        "1 transfers failed",
        "problem  ref counts: The ref count of 1 copies",
        "-> manage.py doctor --repair-counts",
        "CLOUDSTORAGE_ALLOWED_HOSTS",
        "manage.py user_add",
    ):
        assert expected in ended.out, expected
    assert "1 ref counts repaired" in run("doctor", "--repair-counts").out
    repaired = AuditEvent.objects.get(action="doctor.repair-counts")
    assert (repaired.actor.startswith("cli:"), repaired.details) == (True, {"repaired": 1})
    assert "ref counts: all equal" in run("doctor").out


def test_doctor_judges_workers_by_the_clock_that_wrote_their_heartbeat(run, cloud, monkeypatch):
    late = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr("django.utils.timezone.now", lambda: late)
    told = run("doctor").out
    assert "workers: worker:1 is running" in told
    assert "This host's clock differs from the database's" in told


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "soon"])
@pytest.mark.parametrize("command", ["migration_status", "migration_rollback"])
def test_interval_that_is_none_is_a_usage_error(run, cloud, command, interval):
    assert run(command, "--follow", "--interval", interval).code == 2


def test_doctor_names_a_store_that_hangs_and_goes_on(run, cloud, monkeypatch):
    going_on = threading.Event()
    monkeypatch.setattr("migration.doctor.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(MemoryDriver, "check", lambda _: going_on.wait(20))
    try:
        ended = run("doctor")
    finally:
        going_on.set()
    assert "problem  stores: objects is not reached from here: objects has not answered" in ended.out
    assert "ref counts: all equal" in ended.out


def test_doctor_finds_items_that_nobody_could_read(run, cloud):
    cloud.volume.refs.filter(state="Ready").update(state="Destroying")
    ended = run("doctor")
    assert (ended.code, f"No readable copy of the volume data ({cloud.volume.uuid})" in ended.out) == (6, True)


def test_doctor_finds_a_lost_or_open_key_ring(run, cloud, settings, tmp_path):
    from cloudstorage.models import Installation

    Installation.objects.update(key_ring_used=True)
    settings.SECRET_KEYS_FILE = str(tmp_path / "ring")
    assert "Restore" in run("doctor").out
    (tmp_path / "ring").write_text("x")
    (tmp_path / "ring").chmod(0o644)
    assert "chmod 600" in run("doctor").out


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("100", 100), ("1K", 1000), ("1KiB", 1024), ("1.5 GiB", 1610612736), ("2tb", 2 * 10**12), ("none", None), ("10MB", 10**7)],
)
def test_amount_of_bytes_is_understood(text, count):
    assert bytes_from(text, "bandwidth") == count


@pytest.mark.parametrize("text", ["", "fast", "-1", "1X", "1.2.3M", "٣M", "9223372036854775808", "9" * 400])
def test_amount_that_is_none_is_refused(text):
    with pytest.raises(Invalid):
        bytes_from(text, "bandwidth")


def test_amounts_are_told_for_people():
    assert [human_bytes(count) for count in (0, 1023, 1024, 5 * 2**40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 TiB"]
    assert [human_seconds(seconds) for seconds in (5, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def test_exit_codes_are_told_in_the_help_of_every_command(capsys):
    from django.core.management import get_commands, load_command_class

    ours = [name for name, app in get_commands().items() if app in {"cloudstorage", "stores", "migration"}]
    ours.remove("worker_queue")  # for `worker` alone
    assert len(ours) >= 18
    for name in ours:
        command = load_command_class(get_commands()[name], name)
        text = command.create_parser("manage.py", name).format_help()
        assert "--json" in text, name
        assert command.help, name
        assert EXIT_CODES[10].split()[0] in text, name
