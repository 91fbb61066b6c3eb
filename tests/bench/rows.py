"""Regions of a million rows without bytes, written by the database itself. Runs in the bench's control process."""

from __future__ import annotations

from typing import Any

CHAIN = 16


def fill(templates: int, snapshots: int, volumes: int, chain: int = CHAIN) -> None:
    """That many items with a Ready ref and a file each on the only store; snapshots in chains of `chain`."""
    from django.db import connection

    from stores.models import Account, ImageStore

    store = ImageStore.objects.get()
    Account.objects.get_or_create(id=2, defaults={"account_name": "acme"})
    postgres = connection.vendor == "postgresql"
    numbers = (
        "generate_series(1, {count}) AS numbers(n)"
        if postgres
        else "(WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {count}) SELECT n FROM up) AS numbers"
    )
    words = {
        "uuid": "gen_random_uuid()" if postgres else "lower(hex(randomblob(16)))",
        "now": "now()" if postgres else "datetime('now')",
        "store": store.pk,
        "zone": store.zone_id,
        "chain": chain,
    }

    def run(cursor: Any, statement: str, count: int) -> None:
        cursor.execute(statement.format(numbers=numbers.format(count=count), **words))

    unchecked = "SET session_replication_role = replica" if postgres else "PRAGMA foreign_keys = OFF"
    checked = "SET session_replication_role = DEFAULT" if postgres else "PRAGMA foreign_keys = ON"
    with connection.cursor() as cursor:
        cursor.execute(unchecked)  # what is written here fits
        if templates:
            run(cursor, _TEMPLATES, templates)
            run(cursor, _SHOWN, templates)
        if snapshots:
            run(cursor, _SNAPSHOTS, snapshots)
        if volumes:
            run(cursor, _VOLUMES, volumes)
        kinds = (("template", "vm_template"), ("snapshot", "snapshots"), ("volume", "volumes"))
        for kind, items in kinds:
            for statement in (_REFS, _FILES):
                cursor.execute(statement.format(kind=kind, items=items, **words))
        if postgres:
            tables = [table for kind, items in kinds for table in (items, f"{kind}_store_ref", f"{kind}_store_file")]
            for table in tables:
                cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), coalesce(max(id), 1)) FROM {table}")
            cursor.execute("VACUUM ANALYZE")
        cursor.execute(checked)


_ITEM = "id, uuid, name, account_id, upstream_id, format, hypervisor_type, size, created"
_ITEM_VALUES = "n, {uuid}, '{{}}-' || n, 2, n, 'QCOW2', 'KVM', 1000, {now}"
_TEMPLATES = f"""
    INSERT INTO vm_template ({_ITEM}, unique_name, display_text, public, featured, extractable, type, url, checksum, cross_zones)
    SELECT {_ITEM_VALUES.replace("{{}}", "t")}, 't-' || n, '', false, false, true, 'USER', '', '', false FROM {{numbers}}
"""
_SHOWN = "INSERT INTO template_zone_ref (zone_id, template_id, created) SELECT {zone}, n, {now} FROM {numbers}"
_SNAPSHOTS = f"""
    INSERT INTO snapshots ({_ITEM}, data_center_id, volume_upstream_id, path, parent_id, depth)
    SELECT {_ITEM_VALUES.replace("{{}}", "s")}, {{zone}}, n / {{chain}}, 's' || n,
        CASE WHEN n % {{chain}} = 0 THEN NULL WHEN n = 1 THEN NULL ELSE n - 1 END,
        CASE WHEN n < {{chain}} THEN n - 1 ELSE n % {{chain}} END
    FROM {{numbers}}
"""
_VOLUMES = f"""
    INSERT INTO volumes ({_ITEM}, data_center_id) SELECT {_ITEM_VALUES.replace("{{}}", "v")}, {{zone}} FROM {{numbers}}
"""
_REFS = """
    INSERT INTO {kind}_store_ref (id, {kind}_id, store_id, state, install_path, size, physical_size, proof, sha256, ref_cnt,
        error_str, created, updated, update_count, journalled)
    SELECT id, id, {store}, 'Ready', '{kind}s/2/' || id, 1000, 1000, 'adopted', '', 0, '', {now}, {now}, 0, false FROM {items}
"""
_FILES = """
    INSERT INTO {kind}_store_file (id, ref_id, path, size, version, sha256, etag, proof, format, backing, problem)
    SELECT id, id, '{kind}s/2/' || id || '/disk', 1000, '1', '', '', 'adopted', 'QCOW2', '', '' FROM {items}
"""
