"""Environment of recipes/guess.yaml: a number from 1 to 15, four guesses,
and each time whether it is higher or lower."""

from __future__ import annotations

from typing import Any


class Guess:
    def reset(self, task: Any) -> None:
        self.secret, self.left = int(task.row["secret"]), 4

    def step(self, action: str) -> tuple[str, float, bool]:
        """What the model reads next, its reward, and whether the game is over."""
        self.left -= 1
        try:
            guess = int(action.strip().rstrip("."))
        except ValueError:
            return "Answer with one number.", 0.0, self.left == 0
        if guess == self.secret:
            return "Right.", 1.0, True
        return "Higher." if guess < self.secret else "Lower.", 0.0, self.left == 0
