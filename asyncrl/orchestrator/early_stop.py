"""When a run has learnt enough, by its scores on held-out tasks."""

from __future__ import annotations

from collections.abc import Mapping

from asyncrl.recipe.evaluation import EarlyStopRecipe


def reason(wish: EarlyStopRecipe, scores: Mapping[int, float]) -> str | None:
    """Why the run ends now, given the metric by version; None: it goes on."""
    if not scores:
        return None
    newest = max(scores)
    best = max(scores, key=lambda version: (scores[version], -version))
    if wish.target is not None and scores[newest] >= wish.target:
        return f"early_stop: {wish.metric} is {scores[newest]:.4g} at version {newest}, the target is {wish.target:g}"
    later = sum(version > best for version in scores)
    if wish.patience is not None and later >= wish.patience:
        return (
            f"early_stop: {wish.metric} was best at version {best} ({scores[best]:.4g}), and {later} evaluations since "
            "were not better"
        )
    return None
