"""How keys and metadata are written in Swift, whose names are UTF-8 of at most 1,024 bytes, so that they come back unchanged.

A byte of a file name that is no UTF-8 becomes `%XX` (80 to FF); a `%` is doubled as `%25` only where it would be mistaken for
that, so ordinary names stay as they are. Metadata names and values are percent-encoded where they are not plain ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from stores.drivers.errors import UnsafeName

MAX_NAME = 1024
"""Bytes; Swift's `max_object_name_length` unless an operator lowered it."""
OBJECT_META = "x-object-meta-"
INTERNAL_META = "csdriver-"
"""Metadata that the driver keeps for itself."""

_AMBIGUOUS = re.compile("%(?=[89A-F][0-9A-F]|25)")
_ESCAPED = re.compile("%(25|[89A-F][0-9A-F])")
_SURROGATE = re.compile("[\udc80-\udcff]")
_PARTIAL_ESCAPE = re.compile("%[0-9A-F]?$")
_PLAIN_VALUE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def escape(text: str) -> str:
    """`text` as valid UTF-8; raises UnsafeName for what no file name can contain."""
    escaped = _SURROGATE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", _AMBIGUOUS.sub("%25", text))
    try:
        escaped.encode()
    except UnicodeEncodeError:
        raise UnsafeName(f"The name {text!r} is neither text nor bytes of a file name.") from None
    if "\0" in escaped:
        raise UnsafeName(f"The name {text!r} contains a null character.")
    return escaped


def unescape(name: str) -> str:
    """The reverse of `escape`."""
    return _ESCAPED.sub(lambda found: "%" if found[1] == "25" else chr(0xDC00 + int(found[1], 16)), name)


def escaped_prefix(prefix: str) -> str:
    """What every escaped name of a key starting with `prefix` starts with; it may match more."""
    return _PARTIAL_ESCAPE.sub("", escape(prefix))


def object_name(prefix: str, key: str) -> str:
    """The object's name for `key`; raises UnsafeName for a key that leads elsewhere or is too long."""
    # Dot segments would be resolved by the HTTP client, and lead to another object.
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise UnsafeName(f"The key {key!r} is no plain relative path.")
    return checked_length(prefix + escape(key))


def checked_length(name: str) -> str:
    """`name` itself; raises UnsafeName when Swift would refuse its length."""
    if len(name.encode()) > MAX_NAME:
        raise UnsafeName(f"The name {name!r} is longer than the {MAX_NAME} bytes that Swift allows.")
    return name


def meta_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """Request headers that store `metadata`. Names come back in their own case, although HTTP has none."""
    return {
        OBJECT_META + _meta_name(name): quote(value, safe=_PLAIN_VALUE, errors="surrogateescape")
        for name, value in metadata.items()
    }


def metadata_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The metadata in response headers, without what the driver keeps for itself."""
    found = {}
    for header, value in headers.items():
        name = header.removeprefix(OBJECT_META)
        if name != header and not name.startswith(INTERNAL_META):
            found[unquote(name, errors="surrogateescape")] = unquote(value, errors="surrogateescape")
    return found


def _meta_name(name: str) -> str:
    kept = "abcdefghijklmnopqrstuvwxyz0123456789-"
    return "".join(letter if letter in kept else "".join(f"%{byte:02x}" for byte in letter.encode()) for letter in name)
