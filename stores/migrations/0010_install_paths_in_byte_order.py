"""Stores are listed in byte order, and rows are compared with a listing side by side: so the index of install paths is in it too,
whatever the database's own collation. SQLite has no other order."""

from typing import Any

from django.db import migrations

TABLES = ("template_store_ref", "snapshot_store_ref", "volume_store_ref")


def in_byte_order(apps: Any, editor: Any) -> None:
    if editor.connection.vendor == "postgresql":
        for table in TABLES:
            editor.execute(f'ALTER TABLE {table} ALTER COLUMN install_path TYPE varchar(1024) COLLATE "C"')


class Migration(migrations.Migration):
    dependencies = [("stores", "0009_prefix_of_parts")]

    operations = [migrations.RunPython(in_byte_order, migrations.RunPython.noop)]
