"""Two Flask views. One sends many prompts at once and shows the answers that arrive in time. The other shows one answer
while it is written.

OPENAI_API_KEY=… flask --app examples/flask_view/app.py run
Then open http://127.0.0.1:5000/?q=Why+is+the+sky+blue%3F&q=Why+is+the+sea+salty%3F
and http://127.0.0.1:5000/stream?q=Why+is+the+sky+blue%3F
"""

from flask import Flask, Response, render_template_string, request

from chatpool import CallError, ChatPool

PAGE = """<!doctype html>
<p>answered {{ answered }} of {{ pairs|length }}{% if missing %}; the rest did not come in time{% endif %}</p>
<ul>{% for question, answer in pairs %}<li>{{ question }}: {{ answer or "no answer" }}</li>{% endfor %}</ul>
"""

app = Flask(__name__)
DEADLINE = 2  # seconds for all prompts of a request
pool = ChatPool(max_workers=20)  # one for the process


@app.get("/")
def ask():
    questions = request.args.getlist("q")
    answers = pool.map(questions, deadline=DEADLINE)
    answered = sum(answer is not None for answer in answers)
    return render_template_string(
        PAGE,
        pairs=list(zip(questions, answers)),
        answered=answered,
        missing=answered < len(questions),
    )


@app.get("/stream")
def stream():
    pieces = pool.stream(request.args["q"], deadline=60)
    return Response(with_error(pieces), mimetype="text/plain")


def with_error(pieces):
    """Yield the pieces, and a sentence at an error."""
    try:
        yield from pieces
    except CallError as error:
        yield f" [The answer ends here: {error}]"
