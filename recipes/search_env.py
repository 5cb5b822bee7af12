"""Environment of recipes/search-agent-3b.yaml: questions that take a search, as in Search-R1 (arXiv:2503.09516), whose
retrieval server answers at `env.kwargs.url`."""

from __future__ import annotations

import json
import re
import string
import urllib.request
from typing import Any

SYSTEM = "Answer the question. Search as often as you need. End with <answer>a few words</answer>."


async def rollout(task: Any, policy: Any, url: str, results: int = 3) -> float:
    """1 if the answer is one of the golden ones, but for case, articles and punctuation."""

    def search(query: str) -> str:
        """Looks up passages of Wikipedia."""
        body = json.dumps({"queries": [query], "topk": results, "return_scores": True}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            found = json.load(response)["result"][0]
        return "\n\n".join(passage["document"]["contents"] for passage in found)

    question = {"role": "user", "content": task.row["question"]}
    chat = policy.chat([{"role": "system", "content": SYSTEM}, question], tools=[search])
    reply = await chat.run_tools()
    answers = re.findall(r"<answer>(.*?)</answer>", reply.text, re.DOTALL)
    golden = {_plain(answer) for answer in task.row["golden_answers"]}
    return float(bool(answers) and _plain(answers[-1]) in golden)


def _plain(text: str) -> str:
    words = "".join(c for c in text.lower() if c not in string.punctuation).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
