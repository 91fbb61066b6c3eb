"""`manage.py backup`: database and key ring in one archive, while everything goes on."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudstorage.actors import Actor
from cloudstorage.commands import ServiceCommand, human_bytes, passphrase_from
from cloudstorage.errors import Invalid
from migration import recovery


class Command(ServiceCommand):
    help = "Write database and key ring to one archive, which is read back before it gets its name."

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--passphrase-file", metavar="FILE", help="the key ring is encrypted with its content (- = stdin)")
        parser.add_argument("--passphrase-env", metavar="VARIABLE", help="... or with the content of an environment variable")
        parser.add_argument("--without-key-ring", action="store_true", help="leave the key ring out; keep a copy of it yourself")

    def run(self, actor: Actor, options: Mapping[str, Any]) -> int | None:
        passphrase = passphrase_from(options)
        if bool(passphrase) == options["without_key_ring"]:
            raise Invalid(
                "The key ring opens every store's secrets, so it goes into a backup only under a passphrase.",
                remedy="Give either --passphrase-file, or --passphrase-env, or --without-key-ring.",
                field="passphrase",
            )
        path = options["file"]
        manifest = recovery.write_backup(actor=actor, path=path, passphrase=passphrase)
        size = path.stat().st_size
        ring = "with the key ring" if manifest.has_key_ring else "WITHOUT the key ring"
        told = {"file": str(path), "bytes": size, "rows": manifest.rows, "key_ring": manifest.has_key_ring}
        self.say(f"{path}: {manifest.rows} rows {ring}, {human_bytes(size)}, read back", told)
        return None
