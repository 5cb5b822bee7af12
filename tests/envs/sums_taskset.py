"""A taskset in the form of verifiers 0.4, for test_verifiers.py: its Python imports it, not asyncrl's."""

from __future__ import annotations

import asyncio
import sys

import verifiers.v1 as vf

KINDS = ("easy", "tool", "broken", "slow", "talk")


class SumData(vf.TaskData):
    kind: str
    answer: str


class Calculator(vf.Toolset[vf.SharedToolsetConfig]):
    @vf.tool
    async def add(self, a: int, b: int = 1) -> int:
        """The sum."""
        return a + b


class SumTask(vf.Task[SumData]):
    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return trace.num_turns

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        if self.data.kind == "broken":
            raise RuntimeError("the judge is away")
        if self.data.kind == "slow":
            await asyncio.sleep(1000)
        said = [str(message.content) for message in trace.messages if message.role in ("assistant", "tool")]
        return float(any(self.data.answer in text for text in said))

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return 1.0


class SumConfig(vf.TasksetConfig):
    shift: int = 0


class Sums(vf.Taskset[SumTask, SumConfig]):
    @classmethod
    def toolsets(cls, config: SumConfig) -> list[vf.Toolset]:
        return [Calculator(vf.SharedToolsetConfig())]

    def load(self) -> list[SumTask]:
        sys.stdout.write("what a taskset prints is in nobody's way\n")
        answer = {"tool": "42"}
        data = [
            SumData(
                prompt=None if kind == "talk" else f"What is {i + self.config.shift} + 1?",
                name=f"sum {i}",
                system_prompt="Be brief.",
                kind=kind,
                answer=answer.get(kind, "ok"),
            )
            for i, kind in enumerate(KINDS)
        ]
        return [SumTask(one, self.config.task) for one in data]


__all__ = ["Sums"]

if __name__ == "__main__":
    Calculator.run()
