"""Windows of the week by the clock of a named time zone, and copies that are read back."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: ClassVar = [("stores", "0013_history_of_items")]

    operations: ClassVar = [
        migrations.AddField("transferbatch", "time_zone", models.CharField(blank=True, db_default="", default="", max_length=64)),
        migrations.AddField("transfer", "read_back", models.BooleanField(db_default=False, default=False)),
    ]
