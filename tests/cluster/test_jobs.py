"""What the cluster says while a job is sent."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrl.cluster import jobs
from asyncrl.errors import RunFailed
from asyncrl.recipe.load import load

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later."


class Cluster:
    """The client of one that refuses a few times."""

    def __init__(self, *refusals: str) -> None:
        self.refusals, self.taken = list(refusals), 0

    def submit_job(self, **_: Any) -> None:
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        self.taken += 1


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_AGAIN_S", 0.0)


def send(cluster: Cluster) -> None:
    jobs._send(cluster, "job", "folder", load("recipes/tiny.yaml"))  # type: ignore[arg-type]


def test_a_cluster_without_agents_is_waited_for_and_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(NO_AGENT, NO_AGENT)
    send(cluster)
    assert cluster.taken == 1
    assert capsys.readouterr().err == "no node of the cluster takes jobs yet; trying again for 60 s\n"


def test_another_refusal_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match="the cluster did not take the job: no such package"):
        send(Cluster("no such package\nTraceback"))
    assert capsys.readouterr().err == ""


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_SUBMIT_DEADLINE_S", -1.0)
    with pytest.raises(RunFailed, match="No available agent"):
        send(Cluster(NO_AGENT))
