"""Environment of recipes/fork-join.yaml: an organizer and workers, all of one policy (AsyncThink, arXiv:2510.26658).

The organizer writes  <FORK1>sub-query</FORK1>   a worker begins, with a sequence of its own, and the organizer goes on
                      <JOIN1>                    the organizer waits for worker 1
and reads             what it returned</JOIN1>   what stands in its <RETURN>...</RETURN>, or all that it wrote
The end of its turn is the end: what nobody has joined is cancelled.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from asyncrl.envs.environment import ContextFull
from asyncrl.task import Message

STOPS = [mark for i in range(1, 10) for mark in (f"</FORK{i}>", f"<JOIN{i}>")]
ACTION = re.compile(r"<FORK([1-9])>(?P<query>.*?)</FORK\1>|<JOIN(?P<join>[1-9])>", re.DOTALL)
OPENED = re.compile("<FORK[1-9]>")
RETURN = re.compile("<RETURN>(.*?)(</RETURN>|$)", re.DOTALL)
ENOUGH = 0.5
"""Concurrency, of 1, that earns all of its reward: more would be worth forking for its own sake (the paper's tau)."""


class BadFormat(Exception):
    """A fork or join that cannot be done, and why."""


@dataclass
class Organized:
    """How it went. One step of time is one token of everyone who writes."""

    ended: bool = False
    """The organizer has ended its turn; else it was cut off, or the format was wrong."""
    answer: str = ""
    """What the organizer wrote last."""
    latency: int = 0
    """Steps, by the recurrence of the paper: a worker begins with its fork, a join waits for its end."""
    num_tokens: int = 0
    """Of the organizer, and of the workers that it joined."""
    queries: list[str] = field(default_factory=list)
    """What was forked."""
    joins: int = 0
    error: str = ""
    """Of the format."""

    @property
    def concurrency(self) -> float:
        """Mean number of agents that write."""
        return self.num_tokens / max(self.latency, 1)

    def concurrency_reward(self, agents: int) -> float:
        """From 0 to 1."""
        return min(self.concurrency / agents, ENOUGH) / ENOUGH


async def organize(policy: Any, messages: list[Message], first: list[Message], agents: int) -> Organized:
    """first: what comes before a worker's sub-query. agents: who may be at work at once, the organizer with them; a
    worker is, until it is joined."""
    how, transcript = Organized(), policy.transcript(messages)
    workers: dict[str, asyncio.Task[tuple[str, int]]] = {}
    begun: dict[str, int] = {}
    try:
        while not transcript.ended:
            num = await transcript.write(STOPS)
            how.latency += num
            how.num_tokens += num
            while action := complete(transcript.text):
                transcript.take(action.end())
                if (number := action["join"]) is None:
                    number = action[1]
                    if number in begun or len(workers) == agents - 1:
                        why = f"{number} was forked before" if number in begun else f"no agent of {agents} is free"
                        raise BadFormat(f"<FORK{number}>: {why}")
                    begun[number] = how.latency
                    how.queries.append(action["query"].strip())
                    query = {"role": "user", "content": how.queries[-1]}
                    workers[number] = asyncio.create_task(work(policy, [*first, query]))
                elif number not in workers:
                    raise BadFormat(f"<JOIN{number}>: there is no such worker")
                else:
                    text, num = await workers[number]
                    del workers[number]
                    how.latency = max(how.latency, begun[number] + num)
                    how.num_tokens += num
                    how.joins += 1
                    transcript.read(f"{text}</JOIN{number}>\n")
    except BadFormat as error:
        how.error = str(error)
    except ContextFull:
        policy.truncate()
    finally:
        for task in workers.values():
            task.cancel()
        await asyncio.gather(*workers.values(), return_exceptions=True)
    how.ended, how.answer = transcript.ended and not how.error, transcript.text.strip()
    return how


def complete(text: str) -> re.Match[str] | None:
    """The first fork, or join that stands in no fork."""
    action = ACTION.search(text)
    return action if action and not OPENED.search(text[: action.start()]) else None


async def work(policy: Any, messages: list[Message]) -> tuple[str, int]:
    """What a worker returns, and how many tokens it wrote. One that is cut off returns what it has."""
    transcript, num = policy.transcript(messages), 0
    try:
        while not transcript.ended and "</RETURN>" not in transcript.text:
            num += await transcript.write(["</RETURN>"])
    except ContextFull:
        pass
    returned = RETURN.search(transcript.text)
    return (returned[1] if returned else transcript.text).strip(), num


# -- the task: a sum of four numbers


def example(a: int, b: int, c: int, d: int) -> list[Message]:
    """A question and how it is answered."""
    forks = f"<FORK1>{a} + {b}</FORK1>\n<FORK2>{c} + {d}</FORK2>\n"
    joins = f"<JOIN1>{a} + {b} = {a + b}</JOIN1>\n<JOIN2>{c} + {d} = {c + d}</JOIN2>\n"
    answer = f"{a + b} + {c + d} = {a + b + c + d}"
    return [
        {"role": "user", "content": f"{a} + {b} + {c} + {d}"},
        {"role": "assistant", "content": forks + joins + answer},
    ]


ORGANIZER: list[Message] = [
    {"role": "system", "content": "Fork the two halves of the sum, join them, and add."},
    *example(3, 5, 2, 9),
    *example(7, 10, 6, 1),
    *example(8, 4, 10, 5),
    *example(1, 9, 3, 6),
]
WORKER: list[Message] = [{"role": "user", "content": "4 + 9"}, {"role": "assistant", "content": "4 + 9 = 13"}]


async def rollout(task: Any, policy: Any, agents: int = 3, concurrency_weight: float = 0.0) -> dict[str, float]:
    """A third each for the two halves that were forked, for two joins, and for the right sum; something for
    concurrency. 0 for what is out of order or cut off."""
    a, b, c, d = task.row["metadata"]["expression"].split(" + ")
    question: Message = {"role": "user", "content": f"{a} + {b} + {c} + {d}"}
    how = await organize(policy, [*ORGANIZER, question], WORKER, agents)
    is_right = how.ended and how.answer.rpartition(" = ")[2] == task.row["answer"]
    halves = sum(half in how.queries for half in (f"{a} + {b}", f"{c} + {d}"))
    reward = (halves / 2 + min(how.joins, 2) / 2 + is_right) / 3 + concurrency_weight * how.concurrency_reward(agents)
    figures = {"right": float(is_right), "latency": how.latency, "concurrency": how.concurrency, "joins": how.joins}
    return {"reward": reward if how.ended else 0.0, **figures, "bad_format": float(bool(how.error))}
