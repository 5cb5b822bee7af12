"""The seam between the trainer actor and what trains: a backend that is not in the package, in the real actor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from asyncrl.control.messages import Train
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group, Trajectory, encode
from asyncrl.storage.sight import Sight
from asyncrl.trainer.actor import TrainerActor
from asyncrl.trainer.backend import backend_class
from asyncrl.trainer.fsdp import Fsdp
from asyncrl.trainer.messages import ResumePoint
from asyncrl.weights.replicas import RayReplicas
from asyncrl.weights.shards import Shard, assemble
from asyncrl.weights.transport import receiver_class
from asyncrl.weights.update import WeightUpdate

pytestmark = pytest.mark.slow

TOY, SIZE = Path(__file__).with_name("toy_backend.py"), 512
ROOT = Path(__file__).resolve().parents[2]


def recipe(model: Path, **trainer: Any) -> Recipe:
    keys = {"model": str(model), "data": {"path": "x"}, "reward": "x", "max_steps": 2, "weights": {"dtype": "float32"}}
    return Recipe.model_validate({**keys, "trainer": {"backend": f"{TOY}:Table", "learning_rate": 0.5, **trainer}})


def frame(task: int) -> bytes:
    """A group of two: the one whose last token is 7 is rewarded."""

    def one(last: int) -> Trajectory:
        versions = np.array([-1, 0, 0], np.int32)
        tokens, logprobs = np.array([3, 5, last], np.int32), np.zeros(3, np.float32)
        return Trajectory(tokens, versions, logprobs, versions >= 0, float(last == 7), "stop")

    return encode(Group(task, 0, 0, (one(7), one(8))))


class Buffer:
    def take(self, keys: list[tuple[int, int]]) -> list[bytes]:
        return [frame(task) for task, _ in keys]


class Engine:
    """What a generator and vLLM's worker do with a weight sync, without a model."""

    def join_channel(self, told: dict[str, Any]) -> None:
        self.shards = [[Shard.of_wire(shard) for shard in endpoint["shards"]] for endpoint in told["endpoints"]]
        ends, rank = told["endpoints"], told["rank_offset"]
        self.receiver = receiver_class(told["module"])(ends, rank, told["world_size"], told["timeout_s"])

    def update_weights(self, update: WeightUpdate) -> float:
        sizes = [sum(shard.num_elements for shard in own) for own in self.shards]
        flats = self.receiver.receive(update.info["copies"], sizes, torch.float32)
        self.weights = {}
        for own, flat in zip(self.shards, flats, strict=True):
            parts = zip(own, flat.split([shard.num_elements for shard in own]), strict=True)
            self.weights |= {name: whole.clone() for name, whole in assemble(parts)}
        return 0.25

    def held(self) -> dict[str, torch.Tensor]:
        return self.weights


@pytest.mark.parametrize("transport", ["shared_memory", "gloo"])
def test_a_backend_of_ones_own_trains_sends_saves_restores_and_exports(
    local_ray: Callable[..., None], tiny_model: Path, tmp_path: Path, transport: str
) -> None:
    if not ray.is_initialized():
        local_ray(num_cpus=2)
    (tmp_path / "checkpoints").mkdir()
    sight, asked = Sight.begin(tmp_path), recipe(tiny_model)
    buffer, engine = ray.remote(Buffer).remote(), ray.remote(Engine).remote()

    def start(origin: ResumePoint) -> tuple[Any, Any]:
        actor = TrainerActor.options(num_cpus=0).remote(asked, str(tiny_model), transport, ROOT, sight, buffer, 0)
        return actor, ray.get(actor.start.remote(origin, None, None), timeout=120)

    trainer, loaded = start(ResumePoint(0, None, None))
    assert loaded.kernels == ""
    assert loaded.probes[0] == pytest.approx([-np.log(SIZE)] * len(loaded.probes[0]))
    result = ray.get(trainer.train.remote(Train(0, ((0, 0),), 0), -1, True), timeout=60)
    assert result.report.tokens_trained == 4
    assert result.report.metrics["trainer/grad_norm"] > 0

    replicas = RayReplicas({"generator-0": engine}, {"generator-0": 1}, 60.0)
    endpoint = ray.get(trainer.open_sender.remote(), timeout=60)
    ray.get(trainer.connect.remote(replicas, [endpoint]), timeout=60)
    version, copy = ray.get(trainer.stage.remote(1), timeout=60)
    report = ray.get(trainer.publish.remote(version, [copy]), timeout=60)
    assert (report.version, report.pause_s, report.num_bytes) == (1, 0.25, 4 * SIZE * SIZE)
    sent = ray.get(engine.held.remote(), timeout=60)["table"]
    assert sent[5, 7] > 0 > sent[5, 8]

    folder = tmp_path / "checkpoints" / "one"
    ray.get(trainer.save.remote(folder), timeout=60)
    ray.get(trainer.saved.remote(), timeout=60)
    ray.get(trainer.export.remote(folder), timeout=60)
    ray.get(trainer.compare_export.remote(folder), timeout=60)
    assert torch.equal(load_file(folder / "model" / "model.safetensors")["table"], sent)
    ray.get(trainer.train.remote(Train(1, ((1, 0),), 0), -1, False), timeout=60)

    again, loaded = start(ResumePoint(1, folder, None))
    assert loaded.probes[1] == result.probe
    ray.get(again.train_again.remote(Train(1, ((1, 0),), 0), 2), timeout=60)
    folders = [tmp_path / "checkpoints" / name for name in ("went_on", "restored")]
    for actor, place in zip((trainer, again), folders, strict=True):
        ray.get(actor.save.remote(place), timeout=60)
        ray.get(actor.saved.remote(), timeout=60)
        ray.get(actor.close.remote(), timeout=60)
        ray.kill(actor)
    went_on, restored = (load_file(place / "trainer" / "rank_0.safetensors") for place in folders)
    assert went_on.keys() == restored.keys() == {"model.table", "steps"}
    assert all(torch.equal(went_on[name], restored[name]) for name in went_on)
    assert went_on["steps"] == 2


def test_what_lacks_a_part_is_named_before_anything_is_started(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.backend '.*toy_backend.py:SIZE' lacks trained_shapes, step, "):
        backend_class(recipe(tiny_model, backend=f"{TOY}:SIZE"), ROOT)
    assert backend_class(recipe(tiny_model, backend="fsdp"), ROOT) is Fsdp
