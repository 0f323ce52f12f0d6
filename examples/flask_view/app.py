"""A page that asks several things at once, and is there in time, with what there is by then.

Run it: flask --app app run, then open http://localhost:5000/?q=Hello&q=Goodbye.
"""

import os

from flask import Flask, render_template_string, request

from chatpool import ChatPool

DEADLINE = float(os.environ.get("ASK_DEADLINE", "5"))  # seconds that a page may take

PAGE = """<!DOCTYPE html>
<title>Answers</title>
<p>Answered {{ answered }} of {{ results|length }}.</p>
<dl>
{% for result in results %}<dt>{{ result.prompt }}</dt>
<dd>{% if result.ok %}{{ result.text }}{% else %}<em>not answered: {{ result.error }}</em>{% endif %}</dd>
{% endfor %}</dl>
"""

app = Flask(__name__)

# One for the whole process: all requests share its connections and its limits. It starts nothing until it is used, so
# it may be made before gunicorn forks its workers.
pool = ChatPool(max_workers=20, progress=False)


@app.get("/")
def answers():
    """Answer every ``q`` of the query."""
    prompts = request.args.getlist("q")
    found = pool.map(prompts, deadline=DEADLINE)
    return render_template_string(PAGE, results=found.results, answered=len(prompts) - len(found.failures))
