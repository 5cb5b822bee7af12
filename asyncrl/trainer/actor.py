"""The trainer actor: one rank of the learner, the staging copies and the weight channel, behind Ray.

    driver --train(k)--> [buffer --frames--> decode -> learner.step -> stage version k+1] --> driver
    driver --publish(k+1)--> [swap staging, send]          its own thread: the next step runs meanwhile

Waits for: `train` for the buffer and, before it stages, for a requested push to have taken its copy (a swap, not
a transfer); `publish` for the replicas. Unblocked by: buffer; replicas; the deadline.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from asyncrl.errors import DeadlineExceeded
from asyncrl.models import load_tokenizer
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import decode
from asyncrl.runtime.buffer import Key
from asyncrl.runtime.replicas import RayReplicas
from asyncrl.trainer.learner import Learner, StepReport
from asyncrl.trainer.losses import load_loss
from asyncrl.trainer.model import load_model
from asyncrl.weights.channel import PublishReport, TransferChannel, VersionChannel
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.verify import Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A step, and where its time went (seconds)."""

    report: StepReport
    busy_s: float
    wait_publish_s: float


@ray.remote(concurrency_groups={"push": 1})
class TrainerActor:
    """Calls run one at a time, but for those of the group `push`, which run beside them."""

    def __init__(self, recipe: Recipe, model: str, channel: str, base_dir: Path, buffer: Any) -> None:
        self.recipe = recipe
        self.model_path = model
        self.backend = channel
        self.base_dir = base_dir
        self.buffer = buffer
        self.channel: TransferChannel | VersionChannel | None = None

    def start(self, checkpoint: Path | None, version: int) -> dict[str, Any]:
        """Load the model, and the state of a checkpoint if there is one. The weights are `version`."""
        recipe = self.recipe
        torch.set_num_threads(recipe.trainer.cpu_threads or os.cpu_count() or 1)
        torch.manual_seed(recipe.seed)
        device = torch.device("cuda" if recipe.trainer.gpus_per_rank else "cpu")
        loss = load_loss(recipe.algorithm.loss, self.base_dir)
        self.learner = Learner(load_model(self.model_path, recipe, device), recipe, loss, device)
        if checkpoint is not None:
            self.learner.load(checkpoint / "trainer")
        dtype = getattr(torch, recipe.weights.dtype)
        # Two copies: a push reads one while the next step fills the other.
        self.next = StagedWeights(self.learner.model, dtype, device)
        self.sending = StagedWeights(self.learner.model, dtype, device)
        self.next_version = self.sending_version = -1
        self.swapped = threading.Condition()
        self.probe = Probe.of_tokenizer(load_tokenizer(self.model_path)) if recipe.weights.verify else None
        self._stage(version)
        return {"pid": os.getpid(), "parameters": sum(p.numel() for p in self.learner.model.parameters())}

    def _stage(self, version: int) -> None:
        with self.swapped:
            self.next.copy_from(self.learner.model)
            if self.probe:
                self.probe.expect(version, self.learner.score(self.probe.tokens))
            self.next_version = version

    def train(self, step: int, keys: list[Key], min_version: int, publishing: int) -> TrainResult:
        """Train batch `step` and stage version `step + 1`. `publishing`: newest version asked to be sent (-1: none)."""
        began = time.perf_counter()
        frames = ray.get(self.buffer.take.remote(step, keys), timeout=self.recipe.deadlines.warn_s)
        report = self.learner.step([decode(frame) for frame in frames], step, min_version)
        waiting = time.perf_counter()
        self._wait_for_swap(publishing)
        waited = time.perf_counter()
        self._stage(step + 1)
        busy_s = time.perf_counter() - began - (waited - waiting)
        return TrainResult(report, busy_s, waited - waiting)

    def _wait_for_swap(self, version: int) -> None:
        deadline_s = self.recipe.deadlines.publish_s
        with self.swapped:
            if not self.swapped.wait_for(lambda: self.sending_version >= version, deadline_s):
                raise DeadlineExceeded(f"the push of version {version} did not take its copy in {deadline_s:.0f} s")

    @ray.method(concurrency_group="push")
    def connect(self, replicas: RayReplicas, address: str) -> None:
        """Open the weight channel to these replicas; an earlier channel is closed first."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.replicas = replicas
        if self.backend == "none":
            self.channel = VersionChannel(replicas)
            return
        timeout_s = self.recipe.deadlines.publish_s
        self.channel = TransferChannel(self.backend, replicas, address, timeout_s)

    @ray.method(concurrency_group="push")
    def publish(self, version: int) -> PublishReport:
        """Send `version` to every replica; returns when it is live on all. May be called again after an error."""
        if self.channel is None:
            raise RuntimeError("publish before connect")
        with self.swapped:
            if self.sending_version != version:
                if self.next_version != version:
                    raise RuntimeError(f"asked to publish version {version}, but {self.next_version} is staged")
                self.next, self.sending = self.sending, self.next
                self.sending_version, self.next_version = version, -1
            self.swapped.notify_all()
        report = self.channel.publish(version, self.sending)
        if self.probe:
            self.probe.check(version, self.replicas.score(self.probe.tokens), self.recipe.weights.dtype)
        return report

    def save(self, folder: Path) -> float:
        """Write trainer/ and model/ into the checkpoint folder; returns the seconds it took."""
        began = time.perf_counter()
        self.learner.save(folder / "trainer")
        self.learner.export(folder / "model", getattr(torch, self.recipe.weights.dtype))
        load_tokenizer(self.model_path).save_pretrained(folder / "model")
        (folder / "trainer" / "ranks.json").write_text(json.dumps({"ranks": 1}))
        return time.perf_counter() - began

    @ray.method(concurrency_group="push")
    def address(self) -> str:
        """Address of this node, where the weight channel listens."""
        return ray.util.get_node_ip_address()
