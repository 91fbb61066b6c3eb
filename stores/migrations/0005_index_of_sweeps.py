import stores.states
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('stores', '0004_cheap_ref_counts'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='transfer',
            index=models.Index(condition=models.Q(models.Q(('state', stores.states.TransferState['RUNNING']), _negated=True), ('lease_until__isnull', False)), fields=['lease_until'], name='transfer_being_swept'),
        ),
    ]
