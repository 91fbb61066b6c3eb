"""The audit trail refuses UPDATE, DELETE and TRUNCATE by trigger; the roles exist as groups."""

from django.db import migrations

TABLE = "cloudstorage_auditevent"

POSTGRES_UP = f"""
CREATE FUNCTION {TABLE}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only';
END $$;
CREATE TRIGGER {TABLE}_rows BEFORE UPDATE OR DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION {TABLE}_append_only();
CREATE TRIGGER {TABLE}_truncate BEFORE TRUNCATE ON {TABLE} FOR EACH STATEMENT EXECUTE FUNCTION {TABLE}_append_only();
"""
POSTGRES_DOWN = f"""
DROP TRIGGER {TABLE}_rows ON {TABLE};
DROP TRIGGER {TABLE}_truncate ON {TABLE};
DROP FUNCTION {TABLE}_append_only();
"""
SQLITE_UP = [
    f"CREATE TRIGGER {TABLE}_{verb.lower()} BEFORE {verb} ON {TABLE} BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
    for verb in ("UPDATE", "DELETE")
]
SQLITE_DOWN = [f"DROP TRIGGER {TABLE}_{verb}" for verb in ("update", "delete")]


def install_triggers(apps, schema_editor):
    for statement in SQLITE_UP if schema_editor.connection.vendor == "sqlite" else [POSTGRES_UP]:
        schema_editor.execute(statement, params=None)


def remove_triggers(apps, schema_editor):
    for statement in SQLITE_DOWN if schema_editor.connection.vendor == "sqlite" else [POSTGRES_DOWN]:
        schema_editor.execute(statement, params=None)


def create_roles(apps, schema_editor):
    groups = apps.get_model("auth", "Group").objects
    for name in ("viewer", "operator", "storage-admin", "auditor"):
        groups.get_or_create(name=name)


class Migration(migrations.Migration):
    dependencies = [("cloudstorage", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]

    operations = [
        migrations.RunPython(install_triggers, remove_triggers),
        migrations.RunPython(create_roles, migrations.RunPython.noop),
    ]
