"""The part of a page that is live: it is sent when it differs, and no longer asked for when nothing can change."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse

from migration.models import Drain
from migration.states import DrainState

pytestmark = pytest.mark.db


def known(answer) -> str:
    """What the part itself tells the browser to send with its next question."""
    found = re.search(r"""hx-headers='{"If-None-Match":"\\"([^"\\]+)\\""}'""", answer.content.decode())
    assert found, answer.content.decode()[:400]
    return f'"{found[1]}"'


@pytest.mark.parametrize("part", ["", "?small=1"])
def test_a_live_part_is_sent_again_only_when_it_differs(cloud, sign_in, part):
    Drain.objects.update(state=DrainState.RUNNING)
    client = sign_in("operator")
    address = reverse("console:drain_live", args=[cloud.drain.uuid]) + part
    first = client.get(address)
    assert first.headers["ETag"] == known(first)
    same = client.get(address, headers={"If-None-Match": known(first)})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", known(first))
    cloud.drain.batch.transfers.update(bytes_done=1, bytes_total=4)
    other = client.get(address, headers={"If-None-Match": known(first)})
    assert (other.status_code, known(other) != known(first)) == (200, True)
    assert client.get(address, headers={"If-None-Match": known(other)}).status_code == 304


def test_a_part_that_ended_is_sent_whole_and_asks_no_more(cloud, sign_in):
    Drain.objects.update(state=DrainState.RUNNING)
    client = sign_in("operator")
    address = reverse("console:drain_live", args=[cloud.drain.uuid])
    before = known(client.get(address))
    Drain.objects.update(state=DrainState.FINISHED)
    ended = client.get(address, headers={"If-None-Match": before})
    assert ended.status_code == 286
    assert "hx-get" not in ended.content.decode()
