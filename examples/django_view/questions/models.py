"""What was asked, and answered."""

from django.db import models


class Answer(models.Model):
    question = models.TextField(unique=True)
    text = models.TextField()
