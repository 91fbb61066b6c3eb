"""Disk image formats: what a file's own header says, which parent it needs, and the wrapper around qemu-img.

Everything here treats the bytes it reads as hostile: reads are bounded, links are never followed.
"""

from stores.images.chains import Chain, chain_of, resolve_backing, verify_link
from stores.images.header import (
    MAX_SIZE,
    FileReader,
    ImageError,
    ImageHeader,
    Reader,
    base_name,
    is_plain_name,
)
from stores.images.probe import FORMAT_OF_SUFFIX, expected_format, inspect
from stores.images.properties import (
    FormatEntry,
    PropertiesError,
    TemplateProperties,
    format_properties,
    parse_properties,
)
from stores.images.qemu import (
    QemuCheck,
    QemuError,
    QemuFailed,
    QemuInfo,
    QemuMissing,
    QemuRefused,
    QemuTimeout,
    qemu_img_check,
    qemu_img_info,
)
from stores.images.vhd import check_vhd

__all__ = [
    "FORMAT_OF_SUFFIX",
    "MAX_SIZE",
    "Chain",
    "FileReader",
    "FormatEntry",
    "ImageError",
    "ImageHeader",
    "PropertiesError",
    "QemuCheck",
    "QemuError",
    "QemuFailed",
    "QemuInfo",
    "QemuMissing",
    "QemuRefused",
    "QemuTimeout",
    "Reader",
    "TemplateProperties",
    "base_name",
    "chain_of",
    "check_vhd",
    "expected_format",
    "format_properties",
    "inspect",
    "is_plain_name",
    "parse_properties",
    "qemu_img_check",
    "qemu_img_info",
    "resolve_backing",
    "verify_link",
]
