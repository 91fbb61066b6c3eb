from django.db import migrations, models

from stores.states import TransferState


class Migration(migrations.Migration):
    dependencies = [("stores", "0006_clock_of_the_database")]

    operations = [
        migrations.AddIndex(
            model_name="transfer",
            index=models.Index(condition=models.Q(("state", TransferState.FAILED)), fields=["id"], name="transfer_failed"),
        ),
    ]
