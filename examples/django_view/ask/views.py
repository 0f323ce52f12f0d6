"""A page that asks several things at once, and is there in time, with what there is by then."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from chatpool import ChatPool

from .models import Answer

# One for the whole process: all requests share its connections and its limits. It starts nothing until it is used, so
# it may be made before gunicorn forks its workers.
pool = ChatPool(max_workers=20, progress=False)


def answers(request: HttpRequest) -> HttpResponse:
    """Answer every ``q`` of the query."""
    prompts = request.GET.getlist("q")
    found = pool.map(prompts, deadline=settings.ASK_DEADLINE)
    Answer.objects.bulk_create(
        Answer(prompt=prompt, text=text) for prompt, text in zip(prompts, found) if text is not None
    )
    return render(request, "answers.html", {"results": found.results, "answered": len(prompts) - len(found.failures)})
