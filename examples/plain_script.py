"""Send many prompts in one line, and print a summary.

OPENAI_API_KEY=… python examples/plain_script.py
"""

from chatpool import ChatPool

prompts = [f"What is {number} times {number}? Reply with the number only." for number in range(50)]
answers = ChatPool(max_workers=20).map(prompts)

for prompt, answer in list(zip(prompts, answers))[:3]:
    print(prompt, "→", answer)
print(answers.summary())
