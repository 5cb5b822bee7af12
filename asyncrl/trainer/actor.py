"""The trainer actor: one rank of the learner, the staging copies and the weight channel, behind Ray.

    driver --train(k)--> [buffer --frames--> decode -> learner.step] --> driver
    driver --publish(k+1)--> [copy of the weights, send]   its own thread: the next step runs meanwhile
    driver --save(k+1)--> [copy to host, write or send]    its own thread: the next step runs meanwhile

Waits for: `train` for the buffer, and before it changes the weights for copies of them under way and for a push that
was asked for to have taken the older copy; `publish` for the replicas. Unblocked by: buffer; the copy; replicas; the
deadline.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from asyncrl.checkpoint import files
from asyncrl.checkpoint.saver import BackgroundSaver
from asyncrl.control.messages import Train
from asyncrl.models import load_tokenizer
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import decode
from asyncrl.runtime import orphans, stacks
from asyncrl.runtime.replicas import RayReplicas
from asyncrl.runtime.snapshots import Snapshots
from asyncrl.trainer.learner import Learner, StepReport
from asyncrl.trainer.losses import load_loss
from asyncrl.trainer.model import load_model
from asyncrl.weights.channel import PublishReport, TransferChannel, VersionChannel
from asyncrl.weights.staging import Staging, require_finite
from asyncrl.weights.verify import Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A step, and where its time went (seconds)."""

    report: StepReport
    busy_s: float
    wait_publish_s: float
    wait_copy_s: float
    """The step stood still until a checkpoint or snapshot had its copy of the weights."""


@dataclass(frozen=True)
class Origin:
    """Where a trainer starts from: a checkpoint folder or a snapshot in memory, else the initial model; then the
    batches that were trained since, in order."""

    version: int
    folder: Path | None
    snapshots: Snapshots | None
    batches: tuple[Train, ...] = ()
    live: int = -1
    """Version that the generators hold: it stays at hand for one that joins them."""


@ray.remote(concurrency_groups={"push": 1, "save": 1})
class TrainerActor:
    """Calls run one at a time, but for those of the groups `push` and `save`, which run beside them."""

    def __init__(self, recipe: Recipe, model: str, channel: str, base_dir: Path, run_dir: Path, buffer: Any) -> None:
        self.recipe = recipe
        self.model_path = model
        self.backend = channel
        self.base_dir = base_dir
        self.run_dir = run_dir
        self.buffer = buffer
        self.channel: TransferChannel | VersionChannel | None = None

    def start(self, origin: Origin, snapshots: Snapshots | None) -> dict[str, Any]:
        """Load the model and the state, train the batches of `origin` again. `snapshots`: where to send new ones."""
        recipe = self.recipe
        stacks.record(self.run_dir / "stacks", "trainer")
        torch.set_num_threads(recipe.trainer.cpu_threads or os.cpu_count() or 1)
        torch.manual_seed(recipe.seed)
        device = torch.device("cuda" if recipe.trainer.gpus_per_rank else "cpu")
        loss = load_loss(recipe.algorithm.loss, self.base_dir)
        self.learner = Learner(partial(load_model, self.model_path, recipe, device), recipe, loss, device)
        self.saver = BackgroundSaver(recipe.deadlines.checkpoint_s)
        self.learner.before_update = self._before_update
        self.snapshots = snapshots
        if origin.snapshots is not None:
            self.learner.restore(origin.snapshots.load(origin.version))
        elif origin.folder is not None:
            self.learner.restore(files.read(origin.folder / "trainer"))
        dtype = getattr(torch, recipe.weights.dtype)
        device_of_copies = device if self.backend == "nccl" else torch.device("cpu")
        self.staging = Staging(self.learner.model, origin.version, dtype, device_of_copies)
        self.probe = Probe.of_tokenizer(load_tokenizer(self.model_path)) if recipe.weights.verify else None
        self._at(origin.version)
        live = max(origin.live, origin.version)
        self._hold(live, origin.version)
        for batch in origin.batches:
            self._learn(batch, publishing=-1)
            self._hold(live, batch.step + 1)
        return orphans.here()

    def _hold(self, live: int, version: int) -> None:
        """Keep the weights if they are those that the generators hold."""
        if live == version:
            self.staging.send(version)

    def _at(self, version: int) -> None:
        """The model has the weights of this version."""
        if self.probe:
            self.probe.expect(version, self.learner.score(self.probe.tokens))
        self.staging.changed(version)

    def _learn(self, batch: Train, publishing: int) -> StepReport:
        self.publishing, self.wait_copy_s, self.wait_publish_s = publishing, 0.0, 0.0
        frames = ray.get(self.buffer.take.remote(list(batch.groups)), timeout=self.recipe.deadlines.start_s)
        report = self.learner.step([decode(frame) for frame in frames], batch.step, batch.min_version)
        self._at(batch.step + 1)
        return report

    def _before_update(self) -> None:
        self.wait_copy_s += self.saver.wait_copied()
        began = time.perf_counter()
        self.staging.before_change(self.publishing, self.recipe.deadlines.step_s)
        self.wait_publish_s += time.perf_counter() - began

    def train(self, batch: Train, publishing: int) -> TrainResult:
        """Train a batch. `publishing`: version whose push was asked for and has not ended (-1: none)."""
        began = time.perf_counter()
        report = self._learn(batch, publishing)
        version = batch.step + 1
        every = self.recipe.checkpoint.snapshot_every_steps
        if self.snapshots and every and version % every == 0 and not self.saver.busy:
            self.saver.start(self.learner.state(), lambda state: self._store(version, state))
        busy_s = time.perf_counter() - began - self.wait_publish_s - self.wait_copy_s
        return TrainResult(report, busy_s, self.wait_publish_s, self.wait_copy_s)

    def _store(self, version: int, state: Mapping[str, torch.Tensor]) -> None:
        assert self.snapshots is not None
        try:
            self.snapshots.store(version, state)
        except Exception as error:
            # A snapshot only makes a recovery shorter: losing one must not end what it is there to protect.
            logger.warning("the snapshot of version %d was not taken: %s", version, error)

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
        lora = self.recipe.trainer.lora
        self.channel = TransferChannel(self.backend, replicas, address, timeout_s, lora.scale if lora.rank else None)

    @ray.method(concurrency_group="push")
    def publish(self, version: int | None) -> PublishReport:
        """Send `version` (None: the one sent last) to every replica; returns when it is live on all.

        May be called again after an error.
        """
        if self.channel is None:
            raise RuntimeError("publish before connect")
        version, weights = self.staging.send(version)
        report = self.channel.publish(version, weights)
        if self.probe:
            self.probe.check(version, self.replicas.score(self.probe.tokens), self.recipe.weights.dtype)
        return report

    def save(self, folder: Path) -> None:
        """Begin to write trainer/ and model/ into the checkpoint folder; returns before it is done.

        What is written is the state now: the next step may run, but changes nothing before the copy is taken.
        """

        def write(state: Mapping[str, torch.Tensor]) -> None:
            files.write(state, folder / "trainer", rank=0)
            self.learner.export(state, folder / "model", getattr(torch, self.recipe.weights.dtype))
            load_tokenizer(self.model_path).save_pretrained(folder / "model")

        state = self.learner.state()
        require_finite({name: tensor for name, tensor in state.items() if name.startswith("model.")})
        self.saver.start(state, write)

    @ray.method(concurrency_group="save")
    def saved(self) -> None:
        """Returns once the checkpoint begun last is written; raises what went wrong."""
        self.saver.wait(self.recipe.deadlines.checkpoint_s)

    @ray.method(concurrency_group="push")
    def address(self) -> str:
        """Address of this node, where the weight channel listens."""
        return ray.util.get_node_ip_address()
