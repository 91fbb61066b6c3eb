"""What nobody enters on purpose, and what fits no column, is refused in words or means what it says; it breaks no page."""

from __future__ import annotations

import pytest

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
