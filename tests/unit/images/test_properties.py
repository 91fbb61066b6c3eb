"""Shows that template.properties is read as CloudStack reads it, written back unchanged, and never trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.images import FormatEntry, PropertiesError, TemplateProperties, format_properties, is_plain_name, parse_properties

pytestmark = pytest.mark.unit

INSTALLED = b"""#Mon Nov 02 10:11:12 UTC 2026
filename=5e4a1b6c-1f0a-3f6b-8f3e-0d7a3b8f9c11.qcow2
description=CentOS 5.5(64-bit) no GUI (KVM)
checksum=ed0e788280ff2912ea40f7f91ca7a249
hvm=false
size=1769537536
id=4
public=true
qcow2=true
uniquename=centos55-x86_64
qcow2.virtualsize=8589934592
virtualsize=8589934592
qcow2.size=1769537536
qcow2.filename=5e4a1b6c-1f0a-3f6b-8f3e-0d7a3b8f9c11.qcow2
"""


def test_every_field_is_read_when_the_file_is_cloudstacks() -> None:
    read = TemplateProperties.from_bytes(INSTALLED)
    name = "5e4a1b6c-1f0a-3f6b-8f3e-0d7a3b8f9c11.qcow2"
    assert read == TemplateProperties(
        uniquename="centos55-x86_64",
        filename=name,
        size=1769537536,
        virtualsize=8589934592,
        id=4,
        public=True,
        hvm=False,
        checksum="ed0e788280ff2912ea40f7f91ca7a249",
        description="CentOS 5.5(64-bit) no GUI (KVM)",
        formats=(FormatEntry("qcow2", name, 1769537536, 8589934592),),
    )
    assert not read.corrupt


def test_minimal_form_is_sound_when_no_format_is_listed() -> None:
    read = TemplateProperties.from_bytes(b"uniquename=201-2-x\nfilename=x.qcow2\nsize=10\nvirtualsize=20\n")
    assert (read.uniquename, read.filename, read.size, read.virtualsize) == ("201-2-x", "x.qcow2", 10, 20)
    assert not read.corrupt
    assert read.problems == ()


@pytest.mark.parametrize(
    "lines",
    [
        b"vhd=true\nvhd.size=1\nvhd.virtualsize=1\n",
        b"vhd=true\nvhd.filename=a.vhd\nvhd.virtualsize=1\n",
        b"vhd=true\nvhd.filename=a.vhd\nvhd.size=1\n",
        b"vhd=true\nvhd.filename=a.vhd\nvhd.size=0\nvhd.virtualsize=1\n",
        b"vhd=true\nvhd.filename=a.vhd\nvhd.size=-5\nvhd.virtualsize=1\n",
        b"vhd=true\nvhd.filename=a.vhd\nvhd.size=1\nvhd.virtualsize=many\n",
        b"vhd=true\nvhd.filename=../a.vhd\nvhd.size=1\nvhd.virtualsize=1\n",
    ],
)
def test_location_is_corrupt_when_a_listed_format_is_incomplete(lines: bytes) -> None:
    read = TemplateProperties.from_bytes(INSTALLED + lines)
    assert read.corrupt
    assert any(text.startswith("corrupt: format vhd") for text in read.problems)


def test_format_is_not_listed_when_it_is_not_true() -> None:
    read = TemplateProperties.from_bytes(INSTALLED + b"vhd=false\n")
    assert [entry.format for entry in read.formats] == ["qcow2"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", "a\\\\b", "a\\u0007"])
def test_file_name_is_not_followed_when_it_is_a_path(name: str) -> None:
    read = TemplateProperties.from_bytes(f"filename={name}\n".encode())
    assert read.filename is None
    assert "not a plain file name" in read.problems[0]


def test_problems_are_named_when_values_are_wrong() -> None:
    read = TemplateProperties.from_bytes(b"id=four\nsize=99999999999999999999\nhvm=yes\nuniquename=x\n")
    assert (read.id, read.size, read.hvm, read.uniquename) == (None, None, None, "x")
    assert len(read.problems) == 4
    assert "the file is not known" in read.problems[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a=b", {"a": "b"}),
        (b"a : b\r\nc d\re", {"a": "b", "c": "d", "e": ""}),
        (b"  # no\n! no\n\n  a = b ", {"a": "b "}),
        (b"a=one\\\n   two\\\n\nb=c", {"a": "onetwo", "b": "c"}),
        (b"a=x\\\\\nb=c", {"a": "x\\", "b": "c"}),
        (b"a\\ b\\:c\\==d\\te\\u00E9\\q", {"a b:c=": "d\te\u00e9q"}),
        (b"a=1\na=2", {"a": "2"}),
        (b"a=\\uD83D\\uDE00", {"a": "\U0001f600"}),
        (b"a=\\uD83D", {"a": "\ufffd"}),
        ("a=é".encode(), {"a": "é"}),
        ("a=é".encode("latin-1"), {"a": "é"}),
        (b"=v", {"": "v"}),
        (b"", {}),
        (b"a=b\\", {"a": "b"}),
    ],
)
def test_text_is_read_as_java_reads_it(text: bytes, expected: dict[str, str]) -> None:
    assert parse_properties(text) == expected


@pytest.mark.parametrize("data", [b"a=\\u12", b"a=\\uzzzz", b"a\0b", b"a=\\u0000", b"#" * (64 * 1024 + 1)])
def test_error_is_raised_when_it_is_no_properties_file(data: bytes) -> None:
    with pytest.raises(PropertiesError):
        parse_properties(data)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    )
)
def test_values_survive_when_written_and_read(values: dict[str, str]) -> None:
    assert parse_properties(format_properties(values)) == values


@given(st.binary(max_size=500))
def test_only_our_error_is_raised_when_bytes_are_hostile(data: bytes) -> None:
    try:
        read = TemplateProperties.from_bytes(data)
    except PropertiesError:
        return
    assert read.filename is None or is_plain_name(read.filename)


FIELDS = [b"filename", b"size", b"id", b"hvm", b"qcow2", b"qcow2.size", b"qcow2.filename", b"vhd", b"other", b"description"]


@given(
    st.lists(st.tuples(st.sampled_from(FIELDS), st.one_of(st.sampled_from([b"true", b"1", b"x.vhd"]), st.binary(max_size=12))))
)
def test_properties_survive_when_written_and_read(pairs: list[tuple[bytes, bytes]]) -> None:
    try:
        read = TemplateProperties.from_bytes(b"\n".join(key + b"=" + value for key, value in pairs))
    except PropertiesError:
        return
    again = TemplateProperties.from_bytes(read.to_bytes())
    assert (again.filename, again.size, again.formats, again.extra) == (read.filename, read.size, read.formats, dict(read.extra))
    assert again.corrupt == read.corrupt
