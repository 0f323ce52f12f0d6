"""A view that asks what is not yet known, all at once, and shows what was answered in time."""

from django.shortcuts import render

from chatpool import ChatPool

from .models import Answer

DEADLINE = 2  # seconds for all prompts of a request
pool = ChatPool(max_workers=20)  # one for the process: all requests share its threads and connections


def ask(request):
    questions = request.GET.getlist("q")
    known = dict(Answer.objects.filter(question__in=questions).values_list("question", "text"))
    unknown = [question for question in dict.fromkeys(questions) if question not in known]
    answers = pool.map(unknown, deadline=DEADLINE)  # what is not done by then is None
    new = {question: text for question, text in zip(unknown, answers) if text is not None}
    Answer.objects.bulk_create([Answer(question=q, text=text) for q, text in new.items()], ignore_conflicts=True)
    known.update(new)
    pairs = [(question, known.get(question)) for question in questions]
    answered = sum(answer is not None for _, answer in pairs)
    return render(request, "answers.html", {"pairs": pairs, "answered": answered, "missing": answered < len(pairs)})
