"""Two pages."""

from django.urls import path
from questions.views import ask, stream

urlpatterns = [path("", ask), path("stream", stream)]
