"""Pumps tell what their copies wait for: the source, the network, the store, a limit, or our own computing."""

from typing import ClassVar

from django.db import migrations, models
from django.db.models import Value


class Migration(migrations.Migration):
    dependencies: ClassVar = [("stores", "0011_place_of_a_store")]

    operations: ClassVar = [
        migrations.AddField(
            "claimer",
            "times",
            models.JSONField(db_default=Value({}, models.JSONField()), default=dict),
        ),
    ]
