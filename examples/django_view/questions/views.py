"""Two views: one sends the questions without a stored answer, and shows the answers that arrive in time; the other
shows one answer while it is written.
"""

from django.http import StreamingHttpResponse
from django.shortcuts import render

from chatpool import CallError, ChatPool

from .models import Answer

DEADLINE = 2  # seconds for all prompts of a request
pool = ChatPool(max_workers=20)  # one for the process


def ask(request):
    questions = request.GET.getlist("q")
    known = dict(Answer.objects.filter(question__in=questions).values_list("question", "text"))
    unknown = [question for question in dict.fromkeys(questions) if question not in known]
    answers = pool.map(unknown, deadline=DEADLINE)  # None after the deadline
    new = {q: text for q, text in zip(unknown, answers) if text is not None}
    Answer.objects.bulk_create(
        [Answer(question=question, text=text) for question, text in new.items()],
        ignore_conflicts=True,
    )
    known.update(new)
    pairs = [(question, known.get(question)) for question in questions]
    answered = sum(answer is not None for _, answer in pairs)
    return render(request, "answers.html", {"pairs": pairs, "answered": answered, "missing": answered < len(pairs)})


def stream(request):
    pieces = pool.stream(request.GET["q"], deadline=60)
    plain = "text/plain; charset=utf-8"
    return StreamingHttpResponse(with_error(pieces), content_type=plain)


def with_error(pieces):
    """Yield the pieces, and a sentence at an error."""
    try:
        yield from pieces
    except CallError as error:
        yield f" [The answer ends here: {error}]"
