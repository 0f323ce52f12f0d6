"""What was answered."""

from django.db import models


class Answer(models.Model):
    """One prompt and its answer."""

    prompt = models.TextField()
    text = models.TextField()
