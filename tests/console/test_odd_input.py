"""What nobody enters on purpose, and what fits no column, is refused in words or means what it says; it breaks no page."""

from __future__ import annotations

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler, TemporaryFileUploadHandler

from stores.models import Zone

pytestmark = pytest.mark.db


def test_a_date_at_the_end_of_all_dates_is_a_date(cloud, sign_in):
    client = sign_in("storage-admin", "auditor")
    assert "conversion.convert" in client.get("/audit/?since=0001-01-01&until=9999-12-31").content.decode()
    assert client.get(f"/items/template/{cloud.template.uuid}/?before=0001-01-01T00:00:00%2B14:00").status_code == 200


@pytest.mark.parametrize("url", ["/items/template/?q=a%00b", "/audit/?actor=%00&format=csv", "/transfers/?cause=%00"])
def test_a_null_character_in_an_address_gets_a_page_that_says_so(sign_in, url):
    answer = sign_in("storage-admin", "auditor").get(url)
    assert (answer.status_code, "null character" in answer.content.decode()) == (400, True)


def test_a_null_character_in_a_form_is_refused_with_nothing_done(sign_in):
    answer = sign_in("storage-admin").post("/zones/add/", {"name": "a\0b"})
    assert (answer.status_code, "null character" in answer.content.decode()) == (400, True)
    assert not Zone.objects.exists()


def test_a_file_in_a_form_is_refused_before_it_is_written_anywhere(client, db, monkeypatch):
    def kept(*_: object) -> None:
        raise AssertionError("a file was kept")

    for handler in (TemporaryFileUploadHandler, MemoryFileUploadHandler):
        monkeypatch.setattr(handler, "new_file", kept)
    answer = client.post("/login/", {"username": "ada", "picture": SimpleUploadedFile("ada.png", b"x")})
    assert (answer.status_code, "What to do" in answer.content.decode()) == (400, True)


def test_failed_sign_ins_are_counted_by_the_address_that_the_proxy_saw(client, settings, db):
    settings.AXES_FAILURE_LIMIT = 2
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

    def sign_in_from(*addresses: str) -> int:
        seen = {"X-Forwarded-For": ", ".join(addresses), "X-Forwarded-Proto": "https"}
        return client.post("/login/", {"username": "ada", "password": "wrong"}, headers=seen).status_code

    assert [sign_in_from("192.0.2.7"), sign_in_from("198.51.100.1", "192.0.2.7")] == [200, 429]
    assert sign_in_from("192.0.2.8") == 200
    settings.SECURE_PROXY_SSL_HEADER = None
    assert [sign_in_from("203.0.113.1"), sign_in_from("203.0.113.2")] == [200, 429]
