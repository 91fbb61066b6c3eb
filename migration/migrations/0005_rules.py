"""What a drain moves and how, from the wizard's draft on."""

from typing import ClassVar

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: ClassVar = [("migration", "0004_what_a_verification_waits_for")]

    operations: ClassVar = [
        migrations.AddField("drain", "rules", models.JSONField(blank=True, default=dict)),
        migrations.AddField("preflight", "rules", models.JSONField(blank=True, default=dict)),
        migrations.AddField(
            "preflight",
            "then",
            models.CharField(blank=True, choices=[("plan", "plan"), ("start", "start")], default="", max_length=8),
        ),
        migrations.CreateModel(
            name="Draft",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("actor", models.CharField(max_length=255, unique=True)),
                ("provider", models.CharField(max_length=255)),
                ("sealed", models.TextField(editable=False)),
                ("step", models.PositiveSmallIntegerField(default=1)),
                (
                    "preflight",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=models.deletion.SET_NULL,
                        related_name="drafts",
                        to="migration.preflight",
                    ),
                ),
                ("updated", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={"ordering": ["id"]},
        ),
    ]
