"""One page."""

from django.urls import path
from questions.views import ask

urlpatterns = [path("", ask)]
