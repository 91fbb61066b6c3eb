"""An item's bytes over REST: whole, by range and by condition, from wherever they are readable, with the copy held meanwhile."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.api.content import requested_range
from stores.models import Hold, TemplateStoreRef
from stores.services.items import delete_item
from stores.states import Kind, Proof, RefState
from tests.factories import content, make_chain, make_ref, make_store, make_template, make_volume, make_zone

pytestmark = [pytest.mark.db, pytest.mark.django_db]


@pytest.fixture
def objects(memory_store):
    return make_store(name="objects")


@pytest.fixture
def volume(objects):
    return make_volume([objects], name="disk", size=5000, proof=Proof.VERIFIED)


def read(answer) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def path(item, kind: str = "volume") -> str:
    return f"{kind}s/{item.uuid}/content"


def test_whole_content_comes_with_its_hash_as_etag(api, volume):
    answer = api("viewer").get(path(volume), headers={"Accept": "application/octet-stream"})
    body = read(answer)
    digest = hashlib.sha256(content("disk")).digest()
    assert answer.status_code == 200
    assert body == content("disk")
    assert answer.headers["ETag"] == f'"{digest.hex()}"'
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert answer.headers["Content-Length"] == "5000"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert f"{volume.uuid}.raw" in answer.headers["Content-Disposition"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_no_hash_is_claimed_of_a_file_that_was_written_over_since_it_was_hashed(api, settings, tmp_path):
    settings.ALLOW_PLAIN_EXPORTS = True
    volume = make_volume([make_store("NFS", zone=make_zone(), folder=tmp_path)], name="disk", size=5000, proof=Proof.READ_BACK)
    digest = hashlib.sha256(content("disk")).hexdigest()
    assert api("viewer").get(path(volume)).headers["ETag"] == f'"{digest}"'
    (file,) = tmp_path.rglob("*.raw")
    file.write_bytes(content("another", 5000))
    answer = api("viewer").get(path(volume))
    assert read(answer) == content("another", 5000)
    assert answer.headers["ETag"] != f'"{digest}"'
    assert "Repr-Digest" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=100-", 100, 4999), ("bytes=-100", 4900, 4999),
     ("bytes=4999-9999", 4999, 4999), ("bytes=-9999", 0, 4999)],
)  # fmt: skip
def test_range_comes_alone(api, volume, asked, first, last):
    answer = api("viewer").get(path(volume), headers={"Range": asked})
    body = read(answer)
    assert answer.status_code == 206
    assert body == content("disk")[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/5000"
    assert answer.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=9999-10000", "bytes=-0"])
def test_range_beyond_the_end_is_refused_with_the_size(api, volume, asked):
    answer = api("viewer").get(path(volume), headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */5000"
    assert not Hold.objects.exists()


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b"])
def test_range_that_is_none_is_ignored(api, volume, asked):
    answer = api("viewer").get(path(volume), headers={"Range": asked})
    assert answer.status_code == 200
    assert read(answer) == content("disk")


def test_range_is_honoured_only_while_the_content_is_the_same(api, volume):
    etag = api("viewer").get(path(volume)).headers["ETag"]
    same = api("viewer").get(path(volume), headers={"Range": "bytes=0-9", "If-Range": etag})
    other = api("viewer").get(path(volume), headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    dated = api("viewer").get(path(volume), headers={"Range": "bytes=0-9", "If-Range": "Sat, 21 Nov 2026 00:00:00 GMT"})
    assert [same.status_code, other.status_code, dated.status_code] == [206, 200, 200]
    assert len(read(same)) == 10
    assert len(read(other)) == len(read(dated)) == 5000


def test_conditions_answer_without_bytes(api, volume):
    client = api("viewer")
    etag = client.get(path(volume)).headers["ETag"]
    unchanged = client.get(path(volume), headers={"If-None-Match": f'"x", {etag}'})
    assert (unchanged.status_code, read(unchanged), unchanged.headers["ETag"]) == (304, b"", etag)
    assert client.get(path(volume), headers={"If-Match": '"x"'}).status_code == 412
    assert client.get(path(volume), headers={"If-Match": etag}).status_code == 200
    assert client.get(path(volume), headers={"If-None-Match": '"x"'}).status_code == 200


def test_head_tells_all_and_sends_nothing(api, volume):
    whole = api("viewer").send("HEAD", path(volume))
    part = api("viewer").send("HEAD", path(volume), headers={"Range": "bytes=0-9"})
    assert (whole.status_code, whole.headers["Content-Length"], read(whole)) == (200, "5000", b"")
    assert (part.status_code, part.headers["Content-Length"], read(part)) == (206, "10", b"")
    assert not Hold.objects.exists()


def test_empty_file_is_empty(api, objects):
    empty = make_volume([objects], size=0, proof=Proof.VERIFIED)
    answer = api("viewer").get(path(empty))
    assert (answer.status_code, read(answer), answer.headers["Content-Length"]) == (200, b"", "0")
    assert api("viewer").get(path(empty), headers={"Range": "bytes=0-"}).status_code == 416


def test_copy_is_held_while_it_is_read_and_not_longer(api, volume):
    answer = api("viewer").get(path(volume))
    stream = answer._iterator
    assert next(stream)
    assert Hold.objects.get().reason == "read"
    stream.close()
    assert not Hold.objects.exists()


def test_each_file_is_read_by_its_path_when_there_are_several(api, memory_store, settings, tmp_path):
    nfs = make_store("NFS", zone=make_zone(), folder=tmp_path / "export")
    template = make_template([nfs], name="web")
    client = api("viewer")
    shown = client.get(f"templates/{template.uuid}").json()
    paths = [file["path"] for file in shown["stores"][0]["files"]]
    assert sorted(paths) == sorted([f"{template.uuid}.qcow2", "template.properties"])
    assert read(client.get(path(template, "template"))) == content("web")
    properties = client.get(f"{path(template, 'template')}?path=template.properties")
    assert read(properties) == f"uniquename={template.unique_name}\n".encode()
    missing = client.get(f"{path(template, 'template')}?path=../../etc/passwd")
    assert missing.status_code == 404
    assert "template.properties" in missing.json()["remedy"]


def test_file_must_be_named_when_an_item_has_several_images(api, objects):
    volume = make_volume([objects])
    TemplateStoreRef.objects.all().delete()
    snapshot = make_chain([objects], length=1)[0]
    ref = snapshot.refs.get()
    ref.files.all().delete()
    ref.delete()
    where = "snapshots/2/9/vm"
    make_ref(Kind.SNAPSHOT, snapshot, objects, where, {f"{where}/a.vmdk": b"a", f"{where}/b.vmdk": b"bb"}, proof=Proof.VERIFIED)
    answer = api("viewer").get(path(snapshot, "snapshot"))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/path")
    assert read(api("viewer").get(f"{path(snapshot, 'snapshot')}?path=b.vmdk")) == b"bb"
    assert volume


def test_next_copy_is_read_when_the_best_store_is_away(api, memory_store, tmp_path):
    nfs = make_store("NFS", zone=make_zone(), folder=tmp_path / "export")
    objects = make_store(name="objects")
    volume = make_volume([objects, nfs], name="disk", proof=Proof.VERIFIED)
    memory_store.available = False
    answer = api("viewer").get(path(volume))
    assert answer.status_code == 200
    assert read(answer) == content("disk")


def test_unreachable_store_is_a_503_and_no_404(api, volume, memory_store):
    memory_store.available = False
    answer = api("viewer").get(path(volume))
    assert (answer.status_code, answer.json()["code"]) == (503, "unreachable")
    assert answer.headers["Retry-After"]
    assert not Hold.objects.exists()


def test_deleted_item_is_gone_for_everybody(api, volume, admin):
    delete_item(actor=admin, kind=Kind.VOLUME, item=volume)
    assert api("viewer").get(path(volume)).status_code == 404
    assert api("viewer").get(f"volumes/{volume.uuid}").status_code == 404
    assert api("viewer").get("volumes").json()["results"] == []


def test_etag_without_a_hash_changes_with_the_file(api, objects, memory_store):
    volume = make_volume([objects], name="disk")
    first = api("viewer").get(path(volume)).headers
    assert "Repr-Digest" not in first
    ref = volume.refs.get()
    key = ref.files.get().path
    info, _ = memory_store.objects[key]
    stored = memory_store.store(key, b"x" * 5000, "other", {}, if_absent=False)
    assert stored.version != info.version
    assert api("viewer").get(path(volume)).headers["ETag"] != first["ETag"]
    assert ref.state == RefState.READY


@given(st.integers(0, 300), st.one_of(st.none(), st.integers(0, 300)), st.one_of(st.none(), st.integers(0, 300)))
def test_range_is_that_of_a_slice_whatever_is_asked(size, first, last):
    data = bytes(range(256)) * 2
    data = data[:size]
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    try:
        found = requested_range(header, size)
    except ValueError:
        assert (first is not None and first >= size) or (first is None and (not last or not size))
        return
    if found is None:
        assert (first is None and last is None) or (first is not None and last is not None and last < first)
        return
    start, length = found
    assert length > 0
    expected = data[first : None if last is None else last + 1] if first is not None else data[-last:]
    assert data[start : start + length] == expected
