from django.db import migrations


def forget_parts(apps, schema_editor):
    """Their SHA-256 was their own. A part without a row is sent again when its upload is resumed."""
    apps.get_model('stores', 'TransferPart').objects.all().delete()


class Migration(migrations.Migration):

    dependencies = [
        ('stores', '0008_count_of_faults_and_losses'),
    ]

    operations = [
        migrations.RunPython(forget_parts, forget_parts),
        migrations.RenameField(
            model_name='transferpart',
            old_name='sha256',
            new_name='prefix_sha256',
        ),
    ]
