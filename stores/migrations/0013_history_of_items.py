"""What happened to an item can be read as one list: attempts that failed leave a row, and a proven copy tells whose it was."""

from typing import ClassVar

import django.db.models.deletion
from django.db import migrations, models
from django.db.models.functions import Now

KINDS = [(kind, kind) for kind in ("template", "snapshot", "volume")]


class Migration(migrations.Migration):
    dependencies: ClassVar = [("stores", "0012_what_pumps_wait_for")]

    operations: ClassVar = [
        migrations.AddField(
            "transfer",
            "copied_by",
            models.ForeignKey(
                "stores.Worker", django.db.models.deletion.SET_NULL, blank=True, db_index=False, null=True, related_name="+"
            ),
        ),
        migrations.CreateModel(
            "ItemEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("kind", models.CharField(choices=KINDS, max_length=16)),
                ("item_id", models.BigIntegerField()),
                ("at", models.DateTimeField(db_default=Now())),
                ("what", models.CharField(max_length=64)),
                ("worker", models.CharField(blank=True, default="", max_length=300)),
                ("words", models.TextField(blank=True, default="")),
                ("remedy", models.TextField(blank=True, default="")),
                (
                    "store",
                    models.ForeignKey(
                        "stores.ImageStore", django.db.models.deletion.SET_NULL, db_index=False, null=True, related_name="+"
                    ),
                ),
            ],
            options={"indexes": [models.Index(fields=["kind", "item_id", "-at"], name="item_event_by_item")]},
        ),
    ]
