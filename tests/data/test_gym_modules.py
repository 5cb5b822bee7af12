"""A data set of reasoning_gym comes without the others, and the package is whole for whoever imports it then."""

from __future__ import annotations

import subprocess
import sys

import pytest
from reasoning_gym.factory import DATASETS

ALONE = """
import sys
from asyncrl.data.gym_modules import data_sets
name, then = sys.argv[1:]
known = data_sets(name)
print(name in known, len(known), "sympy" in sys.modules, "matplotlib" in sys.modules)
exec(then)
"""


def told(name: str, then: str = "") -> list[list[str]]:
    command = [sys.executable, "-c", ALONE, name, then]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [line.split() for line in done.stdout.splitlines()]


def test_one_comes_without_the_others() -> None:
    ((found, number, *heavy),) = told("chain_sum")
    assert (found, heavy) == ("True", ["False", "False"])
    assert int(number) <= 2  # `composite`, which all import


@pytest.mark.parametrize("name", ["syllogism", "no_such"])
def test_one_whose_module_has_another_name_comes_with_all(name: str) -> None:
    """Or one that is not there, for the sentence that names what is like it."""
    ((found, number, *_),) = told(name)
    assert (found, int(number)) == (str(name in DATASETS), len(DATASETS))


@pytest.mark.parametrize(
    "then",
    [
        "import reasoning_gym as r; r.create_dataset('leg_counting', size=1)[0]; print(len(r.factory.DATASETS))",
        "from reasoning_gym import create_dataset, factory; print(len(factory.DATASETS))",
        "from reasoning_gym.algebra import SimpleEquationsDataset; import reasoning_gym as r; r.arithmetic; "
        "r.arithmetic.LegCountingDataset; print(len(r.factory.DATASETS))",
        "from reasoning_gym.arithmetic import LegCountingDataset, ChainSumDataset as C; import reasoning_gym as r; "
        "assert r.factory.DATASETS['chain_sum'][0] is C; print(len(r.factory.DATASETS))",
        "import pickle, reasoning_gym.factory as f; one = pickle.loads(pickle.dumps(f.create_dataset('chain_sum'))); "
        "import reasoning_gym; reasoning_gym.algebra; assert type(one) is f.DATASETS['chain_sum'][0]; "
        "reasoning_gym.create_dataset; print(len(f.DATASETS))",
    ],
)
def test_the_package_is_whole_afterwards(then: str) -> None:
    _, (number,) = told("chain_sum", then)
    assert int(number) == len(DATASETS)
