"""The Ray that a run starts for itself, in a process whose environment says nothing about Ray, as a user's is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

START = """
import ray
from asyncrl.recipe.schema import Recipe
from asyncrl.runtime import cluster

cluster.start(Recipe(model="random:tiny-llama", data={"path": "a.jsonl"}, reward="a:b", max_steps=1))
ray.get(ray.remote(lambda: 1).remote(), timeout=60)
print("token" if ray._raylet.get_authentication_mode() else "open")
cluster.stop()
"""


def test_ray_starts_with_a_token_that_nobody_had_to_set() -> None:
    """Ray reads its mode when it is imported; conftest.py sets it for the tests that start Ray themselves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    out = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=180)
    assert out.stdout.split() == ["token"], out.stderr
