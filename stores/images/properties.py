"""Reads and writes CloudStack's template.properties, the text file beside each template and ISO.

Rules from CloudStack's TemplateLocation: a location is corrupt when a format it lists lacks a file
name or a positive size or virtual size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stores.images.header import ImageError, is_plain_name

MAX_BYTES = 64 * 1024
FORMATS = ("qcow2", "raw", "vhd", "iso", "ova", "vhdx", "vmdk", "vdi", "tar", "dir")
"""CloudStack's Storage.ImageFormat in lower case, in its order."""

_MAX_LONG = 2**63 - 1
_NUMBER = re.compile(r"\+?[0-9]{1,19}")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_KNOWN = (
    "id", "public", "uniquename", "description", "checksum", "hvm",
    "filename", "size", "virtualsize", "physicalSize",
)  # fmt: skip


class PropertiesError(ImageError):
    """The file is no properties file at all: too large, binary, or with a broken escape."""


@dataclass(frozen=True)
class FormatEntry:
    """One `f=true` group of keys. Sizes in bytes; None where missing or not a number."""

    format: str
    filename: str | None
    size: int | None
    virtualsize: int | None

    @property
    def valid(self) -> bool:
        return bool(self.filename) and (self.size or 0) > 0 and (self.virtualsize or 0) > 0


@dataclass(frozen=True)
class TemplateProperties:
    """A template's or ISO's own description. Absent keys are None; sizes in bytes."""

    uniquename: str | None = None
    filename: str | None = None
    size: int | None = None
    virtualsize: int | None = None
    physical_size: int | None = None
    id: int | None = None
    public: bool | None = None
    hvm: bool | None = None
    checksum: str | None = None
    description: str | None = None
    formats: tuple[FormatEntry, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    """keys this product does not know, kept as they are"""
    problems: tuple[str, ...] = ()

    @property
    def corrupt(self) -> bool:
        """CloudStack's own rule; it answers DOWNLOAD_ERROR for such a template."""
        return any(not entry.valid for entry in self.formats)

    @classmethod
    def from_bytes(cls, data: bytes) -> TemplateProperties:
        """Raises `PropertiesError` when it is no properties file; a wrong value becomes a problem."""
        values = parse_properties(data)
        problems: list[str] = []
        entries = []
        used = set(_KNOWN)
        for name in FORMATS:
            keys = (name, f"{name}.filename", f"{name}.size", f"{name}.virtualsize")
            used.update(keys)
            if values.get(name, "").strip().lower() == "true":
                entry = FormatEntry(
                    name,
                    _file_name(values, keys[1], problems),
                    _number(values, keys[2], problems),
                    _number(values, keys[3], problems),
                )
                entries.append(entry)
                if not entry.valid:
                    problems.append(f"corrupt: format {name} needs a file name, a positive size and a positive virtualsize")
        filename = _file_name(values, "filename", problems)
        if filename is None and not entries:
            problems.append("neither filename nor a format is given: the file is not known")
        return cls(
            uniquename=values.get("uniquename") or None,
            filename=filename,
            size=_number(values, "size", problems),
            virtualsize=_number(values, "virtualsize", problems),
            physical_size=_number(values, "physicalSize", problems),
            id=_number(values, "id", problems),
            public=_flag(values, "public", problems),
            hvm=_flag(values, "hvm", problems),
            checksum=values.get("checksum") or None,
            description=values.get("description") or None,
            formats=tuple(entries),
            extra={key: text for key, text in values.items() if key not in used},
            problems=tuple(problems),
        )

    def to_bytes(self) -> bytes:
        """The same content as a properties file, keys in a fixed order."""
        values: dict[str, object] = {
            "id": self.id,
            "public": self.public,
            "uniquename": self.uniquename,
            "description": self.description,
            "checksum": self.checksum,
            "hvm": self.hvm,
            "filename": self.filename,
            "size": self.size,
            "virtualsize": self.virtualsize,
            "physicalSize": self.physical_size,
        }
        for entry in self.formats:
            values[entry.format] = True
            values[f"{entry.format}.filename"] = entry.filename
            values[f"{entry.format}.size"] = entry.size
            values[f"{entry.format}.virtualsize"] = entry.virtualsize
        values |= self.extra
        present = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in values.items()
            if value is not None
        }
        return format_properties(present)


def parse_properties(data: bytes) -> dict[str, str]:
    r"""Keys and values by the rules of java.util.Properties; the last of a repeated key wins.

    UTF-8 is tried before Latin-1 because CloudStack's install scripts write it.
    Raises `PropertiesError` over 64 KiB, with NUL bytes, or with a broken \u escape.
    """
    if len(data) > MAX_BYTES:
        raise PropertiesError(f"{len(data)} bytes is too long: the limit is {MAX_BYTES}")
    if b"\0" in data:
        raise PropertiesError("binary content where text was expected")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    values: dict[str, str] = {}
    for line in _logical_lines(text):
        key, value = _split(line)
        values[_unescape(key)] = _unescape(value)
    return values


def format_properties(values: Mapping[str, str]) -> bytes:
    """A properties file in ASCII that java.util.Properties reads back to the same keys and values."""
    lines = [f"{_escape(key, key=True)}={_escape(text)}\n" for key, text in values.items()]
    return "".join(lines).encode("ascii")


def _logical_lines(text: str) -> list[str]:
    lines: list[str] = []
    pending: list[str] = []
    for raw in re.split(r"\r\n|\r|\n", text):
        line = raw.lstrip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            pending.append(line[:-1])
            continue
        lines.append("".join([*pending, line]))
        pending = []
    if pending:
        lines.append("".join(pending))
    return lines


def _split(line: str) -> tuple[str, str]:
    match = re.match(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*(?:[=:][ \t\f]*)?", line)
    assert match is not None  # every part of the pattern may be empty
    return match[1], line[match.end() :]


def _unescape(text: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(text):
        if text[at] != "\\":
            out.append(text[at])
            at += 1
            continue
        mark = text[at + 1 : at + 2]
        if mark != "u":
            out.append(_ESCAPES.get(mark, mark))
            at += 2
            continue
        digits = text[at + 2 : at + 6]
        if not re.fullmatch("[0-9A-Fa-f]{4}", digits):
            raise PropertiesError(f"broken escape \\u{digits}")
        out.append(chr(int(digits, 16)))
        at += 6
    joined = "".join(out)
    if "\0" in joined:
        raise PropertiesError("an escaped NUL character")
    # Java writes characters beyond 16 bits as two escapes; a lone half is no character
    return joined.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escape(text: str, *, key: bool = False) -> str:
    out: list[str] = []
    for number, char in enumerate(text):
        if char == " ":
            out.append("\\ " if key or number == 0 else " ")
        elif char in "\t\n\r\f":
            out.append("\\" + {"\t": "t", "\n": "n", "\r": "r", "\f": "f"}[char])
        elif char in "\\=:#!":
            out.append("\\" + char)
        elif " " < char <= "~":
            out.append(char)
        else:
            units = char.encode("utf-16-be", "surrogatepass")
            out += [f"\\u{units[i]:02X}{units[i + 1]:02X}" for i in range(0, len(units), 2)]
    return "".join(out)


def _file_name(values: Mapping[str, str], key: str, problems: list[str]) -> str | None:
    name = values.get(key)
    if not name:
        return None
    if not is_plain_name(name):
        problems.append(f"{key}={name!r} is not a plain file name and is not followed")
        return None
    return name


def _number(values: Mapping[str, str], key: str, problems: list[str]) -> int | None:
    text = values.get(key, "").strip()
    if not text:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > _MAX_LONG:
        problems.append(f"{key}={text[:40]!r} is not a number")
        return None
    return int(text)


def _flag(values: Mapping[str, str], key: str, problems: list[str]) -> bool | None:
    text = values.get(key, "").strip().lower()
    if text in ("true", "false"):
        return text == "true"
    if text:
        problems.append(f"{key}={text[:40]!r} is neither true nor false")
    return None
