import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('stores', '0002_scan_runs'),
    ]

    operations = [
        migrations.AddField(
            model_name='transfer',
            name='pump',
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='transferbatch',
            name='opened',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='worker',
            name='pumps',
            field=models.PositiveSmallIntegerField(default=1),
        ),
        migrations.AlterField(
            model_name='transfer',
            name='source',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='transfers_from', to='stores.imagestore'),
        ),
        migrations.AlterField(
            model_name='transfer',
            name='target',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='transfers_to', to='stores.imagestore'),
        ),
        migrations.CreateModel(
            name='Claimer',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('number', models.PositiveIntegerField()),
                ('seen', models.DateTimeField(default=django.utils.timezone.now)),
                ('asks', models.JSONField(default=dict)),
                ('worker', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='claimers', to='stores.worker')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('worker', 'number'), name='claimer_once')],
            },
        ),
    ]
