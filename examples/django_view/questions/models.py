"""Questions and their answers."""

from django.db import models


class Answer(models.Model):
    question = models.TextField(unique=True)
    text = models.TextField()
