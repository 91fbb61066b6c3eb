"""Shows that paths and items map onto each other one to one, and that nothing strange is taken for an item."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import layout
from stores.layout import Place
from stores.states import Kind

pytestmark = pytest.mark.unit

IDS = st.integers(0, layout.MAX_ID)
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in {".", ".."}
)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("template/tmpl/2/201/a.qcow2", Place(Kind.TEMPLATE, 2, 201, ("a.qcow2",))),
        ("template/tmpl/2/201/", Place(Kind.TEMPLATE, 2, 201)),
        ("template/tmpl/2/201/201-2-x/a.qcow2", Place(Kind.TEMPLATE, 2, 201, ("201-2-x", "a.qcow2"))),
        ("volumes/3/9/v.vhd", Place(Kind.VOLUME, 3, 9, ("v.vhd",))),
        ("snapshots/3/9/s", Place(Kind.SNAPSHOT, 3, 9, ("s",))),
        ("snapshots/3/9/dir/s.ovf", Place(Kind.SNAPSHOT, 3, 9, ("dir", "s.ovf"))),
        ("volumes/0/9223372036854775807/v", Place(Kind.VOLUME, 0, 2**63 - 1, ("v",))),
    ],
)
def test_item_is_recognised_when_the_path_follows_the_grammar(path: str, place: Place) -> None:
    assert layout.parse(path) == place


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "template/2/201/a",
        "template/tmpl/2",
        "template/tmpl/2/",
        "template/tmpl/02/201/a",
        "template/tmpl/2/-1/a",
        "template/tmpl/2/2x/a",
        "volumes/2/9223372036854775808/a",
        "volumes/2/99999999999999999999999/a",
        "volumes/٣/3/a",
        "Volumes/2/3/a",
        "volumes//2/3/a",
        "volumes/2/3//a",
        "systemvm/x.iso",
        "notes.txt",
    ],
)
def test_nothing_is_recognised_when_the_path_is_no_item(path: str) -> None:
    assert layout.parse(path) is None


@given(st.sampled_from(list(Kind)), IDS, IDS, NAMES)
def test_path_and_item_are_inverse_when_made_by_us(kind: Kind, account: int, owner: int, name: str) -> None:
    path = layout.install_path(kind, account, owner, name=name, unique_name=name)
    rest = () if kind is Kind.VOLUME else (name,)
    assert layout.parse(path) == Place(kind, account, owner, rest)


@given(st.text())
def test_parsing_never_fails_when_the_path_is_anything(path: str) -> None:
    place = layout.parse(path)
    if place is not None:
        assert "/".join([place.folder, *place.rest]) == path.removesuffix("/")
    layout.skip_rule(path)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\0b", ""])
def test_path_is_refused_when_the_name_could_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError):
        layout.install_path(Kind.SNAPSHOT, 2, 3, name=name)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        (".snapshot/", ".snapshot"),
        ("volumes/2/3/.snapshot/", ".snapshot"),
        ("lost+found/", "lost+found"),
        ("volumes/2/3/.nfs0000001", ".nfs*"),
        (".cs-tmp/", ".cs-tmp"),
        (".cs-trash/", ".cs-trash"),
        (".cloudstorage.json", "marker"),
        ("volumes/2/3/.snapshot", None),
        ("volumes/lost+found/", None),
        ("volumes/2/3/.cs-tmp/", None),
        ("volumes/2/3/a.qcow2", None),
    ],
)
def test_only_named_rules_skip_when_a_listing_is_read(path: str, rule: str | None) -> None:
    assert layout.skip_rule(path) == rule


def test_hypervisor_follows_the_format_when_upstream_knows_it() -> None:
    assert [layout.hypervisor_of(name) for name in ("QCOW2", "VHD", "OVA", "ISO")] == ["KVM", "XenServer", "VMware", "None"]


def test_system_iso_is_known_when_in_its_folder_only() -> None:
    assert layout.is_system_iso("systemvm/systemvm-4.19.iso")
    assert not layout.is_system_iso("systemvm/a/x.iso")
    assert layout.is_unfinished("dnld123tmp_")
    assert not layout.is_unfinished("a.qcow2")
