"""A refusal names what happened, the field and the remedy; a failure says nothing of our insides."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

import pytest
from django.conf.global_settings import DATA_UPLOAD_MAX_MEMORY_SIZE
from django.db import DataError, OperationalError

from cloudstorage.errors import Busy, Unreachable
from stores.models import Account, Snapshot, Zone
from stores.services import region as region_service
from tests.migration.region import changed, dump

pytestmark = [pytest.mark.db, pytest.mark.django_db]


def test_field_code_and_remedy_are_named_when_a_service_refuses(api):
    answer = api().post("stores", {"provider": "Ceph", "url": "x"})
    found = answer.json()
    assert answer.status_code == found["status"] == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert found["type"] == "urn:cloudstorage:problem:invalid"
    assert found["errors"] == [{"pointer": "#/provider", "code": "invalid", "detail": "There is no provider 'Ceph'."}]
    assert "NFS" in found["remedy"]
    assert found["request_id"] == answer.headers["X-Request-Id"]


def test_pointer_leads_into_the_details_when_an_option_of_the_driver_is_wrong(api):
    given = {"provider": "S3", "details": {"accesskey": "a", "bucket": "bbb"}}
    answer = api().post("stores", given)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "#/details/secretkey"


def test_steps_of_the_probe_are_listed_when_a_store_is_refused(api, memory_store):
    memory_store.password = "right"
    answer = api().post("stores", {"provider": "Memory", "url": "memory://objects", "details": {"password": "wrong"}})
    assert (answer.status_code, answer.json()["code"]) == (409, "blocked")
    assert [step["name"] for step in answer.json()["findings"] if step["status"] == "blocker"] == ["reach"]


def test_possible_events_are_listed_when_the_state_forbids_it(api, cloud):
    answer = api("operator").post(f"drains/{cloud.drain.uuid}/pause")
    assert answer.status_code == 409
    assert answer.json()["allowed"] == ["Start", "Cancel"]


@pytest.mark.parametrize(("error", "status"), [(Unreachable("gone", remedy="wait"), 503), (Busy("twice"), 409)])
def test_status_is_that_of_the_error_and_waiting_is_advised_when_it_helps(api, monkeypatch, error, status):
    def refuse(**_):
        raise error

    monkeypatch.setattr(region_service, "add_zone", refuse)
    answer = api().post("zones", {"name": "z"})
    assert answer.status_code == status
    assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("secret /etc/shadow"), 500), (OperationalError("db at 10.0.0.1"), 503)]
)
def test_nothing_internal_is_told_when_something_unforeseen_fails(api, monkeypatch, error, status, caplog):
    def fail(**_):
        raise error

    monkeypatch.setattr(region_service, "add_zone", fail)
    answer = api().post("zones", {"name": "z"})
    assert answer.status_code == status
    assert str(error) not in answer.content.decode()
    assert "Traceback" not in answer.content.decode()
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert any(str(error) in record.getMessage() + str(record.exc_info) for record in caplog.records)


def test_misspelt_filter_is_refused_rather_than_listing_everything(api):
    answer = api().get("stores?providr=NFS")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "#/providr"
    assert "provider" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["stores?zone=abc", "stores?role=King", "templates?pending=perhaps", "transfers?state=Dreaming", "audit?since=yesterday",
     "whoami?x=1", "zones?limit=0", "zones?limit=201", "zones?limit=ten", "zones?cursor=%%%", "zones?cursor=bm9uZQ"],
)  # fmt: skip
def test_malformed_parameter_is_refused(api, path):
    client = api("storage-admin") if not path.startswith("audit") else api("auditor")
    answer = client.get(path)
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"]


def test_misspelt_field_is_refused_and_nothing_is_done(api):
    answer = api().post("zones", {"name": "z", "nmae": "y"})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "#/nmae"
    assert not Zone.objects.exists()


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [(b"{", "application/json", 400), (b"[]", "application/json", 400), (b"a=b", "application/x-www-form-urlencoded", 415)],
)
def test_body_that_is_no_json_object_is_refused(api, data, content_type, status):
    answer = api().send("POST", "zones", data=data, content_type=content_type)
    assert answer.status_code == status, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"[" * 100_000, 400),
        (rb'{"name": "a\ud800"}', 400),
        (rb'{"a\udfff": "b"}', 400),
        (b'{"name": "' + b"x" * DATA_UPLOAD_MAX_MEMORY_SIZE + b'"}', 413),
    ],
    ids=["deep", "lone surrogate in a text", "lone surrogate in a name", "long"],
)
def test_body_that_nothing_can_take_is_refused_with_what_to_do(api, data, status):
    answer = api().send("POST", "zones", data=data, content_type="application/json")
    assert answer.status_code == status, answer.content
    assert answer.json()["remedy"]
    assert not Zone.objects.exists()


@pytest.mark.parametrize("status", [401, 406])
def test_problem_is_json_also_where_the_answer_would_be_none(api, status):
    client = api("") if status == 401 else api()
    answer = client.get("schema/", headers={"Accept": "image/png"} if status == 406 else {})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["remedy"]


def test_accept_header_of_another_type_is_answered_all_the_same(api):
    assert api().get("zones", headers={"Accept": "text/html"}).headers["Content-Type"] == "application/json"


def test_unknown_id_is_a_problem(api):
    answer = api().get(f"drains/{uuid.uuid4()}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_zone_is_added_once(api):
    made = api().post("zones", {"name": "east"})
    assert made.status_code == 201
    assert made.json() == {"id": str(Zone.objects.get().uuid), "name": "east"}
    again = api().post("zones", {"name": "east"})
    assert (again.status_code, again.json()["errors"][0]["pointer"]) == (409, "#/name")


def test_time_before_all_times_is_refused_or_finds_all(api):
    answer = api("auditor").get("audit?since=0001-01-01T00:00:00%2B14:00")
    assert answer.status_code in {200, 400}, answer.content


def test_address_with_a_null_character_is_refused(api):
    assert api().delete("tokens/a%00b").status_code == 400


TOO_LONG, TOO_MUCH = "x" * 5000, 2**63


@pytest.mark.parametrize("given", [{"unique_name": TOO_LONG}, {"display_text": TOO_LONG}, {"volume_upstream_id": TOO_MUCH}])
def test_upload_of_what_fits_no_column_is_refused_before_a_byte_is_read(api, region, given):
    region.volume("data", "east")
    account = Account.objects.get().uuid
    query = urlencode({"name": "new", "filename": "new.raw", "account": account, **given})
    answer = api().send("POST", f"snapshots?{query}", data=b"x", content_type="application/octet-stream")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, f"#/{next(iter(given))}")
    assert not Snapshot.objects.exists()


@pytest.mark.parametrize(
    ("method", "path", "given", "pointer"),
    [
        ("PATCH", "stores/{store}", {"read_limit": TOO_MUCH}, "#/read_limit"),
        ("PATCH", "drains/{drain}/limits", {"read_limits": {"{store}": TOO_MUCH}}, "#/read_limits"),
        ("PATCH", "drains/{drain}/limits", {"read_limits": {"no uuid": 5}}, "#/read_limits"),
        ("POST", "drains", {"name": TOO_LONG}, "#/name"),
    ],
)
def test_body_that_fits_no_column_is_refused_with_nothing_changed(api, cloud, method, path, given, pointer):
    names = {"store": str(cloud.region.stores["east"].uuid), "drain": str(cloud.drain.uuid)}
    if path == "drains":
        api().post(f"drains/{names['drain']}/cancel")
    api().get("whoami")
    before = dump()
    body = {
        key: {inner.format(**names): limit for inner, limit in value.items()} if isinstance(value, dict) else value
        for key, value in given.items()
    }
    answer = api().send(method, path.format(**names), body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert changed(before, dump()) == set()


def test_what_a_database_cannot_keep_is_a_refusal_and_no_failure_of_ours(api, monkeypatch):
    def fail(**_):
        raise DataError("value too long for type character varying(255)")

    monkeypatch.setattr(region_service, "add_zone", fail)
    answer = api().post("zones", {"name": "z"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert "varying" not in answer.content.decode()
