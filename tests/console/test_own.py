"""What people keep for themselves: saved filters and a time zone; nobody else sees it, and nothing leads elsewhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cloudstorage import preferences
from cloudstorage.models import AuditEvent, SavedFilter
from migration.models import Conversion, DrainSample
from stores.models import Kind, Template, Transfer
from stores.services import holds
from tests.console.access import LOOK, address

pytestmark = pytest.mark.db

QUERY = "q=deb&state=Ready"
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def save(client, name: str = "mine", page: str = "item_list template", query: str = QUERY, back: str = "/items/template/"):
    given = {"page": page, "query": query, "name": name}
    return client.post("/filters/save/", given, follow=True, headers={"referer": f"http://testserver{back}"})


def saved_links(page: bytes) -> list[str]:
    block = re.search(r'<ul class="chips" aria-labelledby="saved">.*?</ul>', page.decode(), re.DOTALL)
    return re.findall(r'<a href="([^"]+)"', block[0]) if block else []


def test_a_filter_is_kept_by_name_opened_by_its_link_and_deleted(cloud, sign_in):
    client = sign_in("viewer")
    filtered = client.get(f"/items/template/?{QUERY}").content.decode()
    assert f'name="query" value="{QUERY.replace("&", "&amp;")}"' in filtered
    page = save(client).content
    assert saved_links(page) == ["/items/template/?q=deb&amp;state=Ready"]
    kept = client.get("/items/template/?q=deb&state=Ready").content.decode()
    assert "debian" in kept
    assert 'aria-current="true">mine</a>' in kept
    client.post(f"/filters/{SavedFilter.objects.get().pk}/delete/")
    assert saved_links(client.get("/items/template/").content) == []


def test_saving_under_a_name_again_puts_the_new_in_the_place_of_the_old(cloud, sign_in):
    client = sign_in("viewer")
    save(client)
    save(client, name="  mine ", query="zone=west")
    assert list(SavedFilter.objects.values_list("name", "query")) == [("mine", "zone=west")]


def test_a_filter_is_of_one_person_and_of_one_list(cloud, sign_in):
    client = sign_in("viewer")
    save(client)
    own = SavedFilter.objects.get()
    assert saved_links(client.get("/items/snapshot/").content) == []
    other = sign_in("operator")
    assert saved_links(other.get("/items/template/").content) == []
    refused = other.post(f"/filters/{own.pk}/delete/", follow=True).content.decode()
    assert "You have no such filter." in refused
    assert SavedFilter.objects.count() == 1


def test_only_parameters_that_the_list_knows_are_kept(cloud, sign_in):
    client = sign_in("viewer")
    save(client, query="q=deb&next=https://evil.example/&format=csv&after=5&zone=" + "x" * 1000)
    assert SavedFilter.objects.get().query == f"q=deb&zone={'x' * 255}"
    for query in ("", "next=//evil.example", "format=csv"):
        assert "The list is not filtered" in save(client, name="other", query=query).content.decode()
    for page in ("nowhere", "https://evil.example/", "item_list " + "x" * 100):
        assert "There is no such list." in save(client, name="other", page=page).content.decode()
    assert SavedFilter.objects.count() == 1


def test_lists_of_the_admin_keep_their_filters_too(sign_in):
    client = sign_in("storage-admin")
    url = "/auth/user/?is_active__exact=1"
    assert "Save this filter" in client.get(url).content.decode()
    page = save(client, page="auth_user_changelist", query="is_active__exact=1&e=1", back=url)
    assert saved_links(page.content) == ["/auth/user/?is_active__exact=1"]
    assert save(sign_in("viewer"), page="auth_user_changelist", query="is_active__exact=1", back="/").status_code == 403


def test_nobody_is_sent_to_another_site_after_saving(cloud, sign_in):
    given = {"page": "item_list template", "query": QUERY, "name": "mine"}
    answer = sign_in("viewer").post("/filters/save/", given, headers={"referer": "https://evil.example/items/"})
    assert (answer.status_code, answer["Location"]) == (303, "/")


def test_the_audit_trails_filters_are_for_auditors(cloud, sign_in):
    refused = save(sign_in("storage-admin"), page="audit_list", query="actor=ada", back="/")
    assert refused.status_code == 403
    page = save(sign_in("auditor"), page="audit_list", query="actor=ada", back="/audit/")
    assert saved_links(page.content) == ["/audit/?actor=ada"]


def test_there_is_an_end_to_what_one_person_keeps_of_a_list(cloud, sign_in, monkeypatch):
    monkeypatch.setattr(preferences, "MAX_FILTERS", 2)
    client = sign_in("viewer")
    for name in ("one", "two"):
        save(client, name=name)
    assert "Delete one of them first." in save(client, name="three").content.decode()
    save(client, name="two", query="q=other")
    save(client, name="three", page="transfer_list", query="state=Failed", back="/transfers/")
    assert sorted(SavedFilter.objects.values_list("name", flat=True)) == ["one", "three", "two"]


def test_a_name_is_asked_for(cloud, sign_in):
    for name in ("", "   ", "x" * 61):
        assert "1 to 60 characters" in save(sign_in("viewer"), name=name).content.decode()


# --- times -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def noon(cloud):
    """The item's page tells this moment."""
    Template.objects.update(created=NOON)
    return f"/items/template/{cloud.template.uuid}/"


def times(client, url: str) -> str:
    return next(
        line for line in re.findall(r"<time [^>]*>[^<]*</time>", client.get(url).content.decode()) if "2026-07-01" in line
    )


def test_times_are_shown_in_the_zone_that_a_person_chose_and_told_to_machines_in_utc(noon, sign_in):
    client = sign_in("viewer")
    assert times(client, noon) == '<time datetime="2026-07-01T12:00:00+00:00">2026-07-01 12:00:00 UTC</time>'
    page = client.post("/preferences/", {"time_zone": "Asia/Kolkata"}, follow=True).content.decode()
    assert "Times in" in page
    assert 'value="Asia/Kolkata"' in page
    assert times(client, noon) == '<time datetime="2026-07-01T12:00:00+00:00">2026-07-01 17:30:00 IST</time>'
    assert "UTC" in times(sign_in("operator"), noon)


def test_the_browsers_zone_counts_where_nobody_chose_one_and_nonsense_does_not(noon, sign_in):
    client = sign_in("viewer")
    client.cookies["time-zone"] = "America/New_York"
    assert "08:00:00 EDT" in times(client, noon)
    client.post("/preferences/", {"time_zone": "Europe/Vienna"})
    assert "14:00:00 CEST" in times(client, noon)
    client.post("/preferences/", {"time_zone": ""})
    for nonsense in ("../../etc/passwd", "Nowhere/Land", "x" * 500):
        client.cookies["time-zone"] = nonsense
        assert "12:00:00 UTC" in times(client, noon)


def test_a_zone_that_is_none_is_refused_at_its_field(noon, sign_in):
    client = sign_in("viewer")
    answer = client.post("/preferences/", {"time_zone": "Mars/Olympus"})
    assert answer.status_code == 400
    assert "There is no time zone" in answer.content.decode()
    assert "UTC" in times(client, noon)


def test_no_page_tells_a_time_of_another_zone_or_without_one(cloud, sign_in):
    own = Transfer.objects.filter(kind="template")
    own.update(state="Proven", proof="verified", started_at=NOON, finished_at=NOON + timedelta(minutes=3))
    holds.take_hold(Kind.TEMPLATE, own.get().source_ref_id, "read", "a test", seconds=600)
    client = sign_in("storage-admin", "auditor")
    client.post(f"/tokens/{cloud.token.prefix}/revoke/")
    client.cookies["time-zone"] = "Asia/Tokyo"
    DrainSample.objects.bulk_create(
        DrainSample(drain=cloud.drain, at=NOON + timedelta(minutes=n), items_proven=n, bytes_proven=n, bytes_copied=n)
        for n in range(2)
    )
    told, wrong = 0, []
    for name in LOOK.keys() - {"retirement_report"}:
        page = re.sub(r"<[^>]*>", " ", client.get(address(cloud, name)).content.decode())
        for found in re.finditer(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.{0,12}", page):
            told += 1
            if not re.search(r":\d\d JST", found[0]):
                wrong.append((name, found[0]))
    assert (wrong, told > 9) == ([], True)
    history = client.get(f"/items/template/{cloud.template.uuid}/").content.decode()
    assert "It took 3 min 00 s." in history
    assert "for 10 min at most" in history
    Conversion.objects.update(state="Committed", ended_at=timezone.now() - timedelta(days=3))
    assert "was committed 3 d ago" in client.get(f"/migration/conversions/{cloud.conversion.uuid}/commit/").content.decode()


def test_bytes_in_the_audit_trail_are_told_in_iec_units_and_exactly(cloud, sign_in):
    limits = {"concurrency": "2", "bandwidth": "20M", "window": "", f"read-{cloud.nfs.uuid}": "1GiB"}
    client = sign_in("operator", "auditor")
    client.post(f"/migration/drains/{cloud.drain.uuid}/limits/", limits)
    page = client.get("/audit/?action=drain.limits").content.decode()
    assert "bandwidth: – → 19.1 MiB (20000000)" in page
    assert "read limit of nfs-east: – → 1.0 GiB (1073741824)" in page
    assert "bandwidth: – → 20000000" in b"".join(client.get("/audit/?format=csv&action=drain.limits")).decode()


def test_exports_and_the_api_stay_in_utc(noon, sign_in):
    client = sign_in("viewer")
    client.post("/preferences/", {"time_zone": "Asia/Kolkata"})
    assert b"2026-07-01T12:00:00+00:00" in b"".join(client.get("/items/template/?format=csv"))
    assert "2026-07-01T12:00:00Z" in client.get("/api/v1/templates").content.decode()


def test_health_is_told_without_asking_who_looks(sign_in):
    client = sign_in("viewer")
    with CaptureQueriesContext(connection) as seen:
        assert client.get("/healthz").status_code == 200
    assert len(seen) == 0


def test_own_things_leave_no_trace_in_the_audit_trail(cloud, sign_in):
    before = AuditEvent.objects.count()
    client = sign_in("viewer")
    save(client)
    client.post("/preferences/", {"time_zone": "UTC"})
    assert AuditEvent.objects.count() == before
