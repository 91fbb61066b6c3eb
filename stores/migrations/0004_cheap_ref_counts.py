import django.db.models.deletion
from django.db import migrations, models


TABLES = ("template_store_ref", "snapshot_store_ref", "volume_store_ref")
UP = "ALTER TABLE {} SET (fillfactor = 50)"
"""A conversion raises `ref_cnt` of every ref on the exports. With room for the new row on the same page PostgreSQL leaves the indexes
alone (HOT): 1.8 instead of 11 CPU seconds for 800,000 refs, for twice the size of the heap."""
DOWN = "ALTER TABLE {} RESET (fillfactor)"


def _run(statement):
    def change(apps, schema_editor):
        if schema_editor.connection.vendor == "postgresql":
            for table in TABLES:
                schema_editor.execute(statement.format(table))

    return change


class Migration(migrations.Migration):

    dependencies = [
        ('stores', '0003_fair_claims'),
    ]

    operations = [
        migrations.AlterField(
            model_name='snapshotstoreref',
            name='store',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='stores.imagestore'),
        ),
        migrations.AlterField(
            model_name='templatestoreref',
            name='store',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='stores.imagestore'),
        ),
        migrations.AlterField(
            model_name='volumestoreref',
            name='store',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='stores.imagestore'),
        ),
        migrations.RunPython(_run(UP), _run(DOWN)),
    ]
