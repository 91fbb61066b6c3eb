"""Lists say where a store is: an S3 store has no url, and its driver is not made for a list."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: ClassVar = [("stores", "0010_install_paths_in_byte_order")]

    operations: ClassVar = [
        migrations.AddField("imagestore", "place", models.CharField(blank=True, default="", max_length=2048)),
    ]
