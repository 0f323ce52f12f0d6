"""Made by Django."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The table of answers."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Answer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("prompt", models.TextField()),
                ("text", models.TextField()),
            ],
        ),
    )
