"""The trainer actor: one rank of the trainer backend, its staging copies, its end of the weight transport, behind Ray.

    driver --train(k)--> [buffer --frames--> decode -> backend.step] --> driver
    driver --publish(k+1)--> [copy of the weights, send]   its own thread: the next step runs meanwhile
    driver --save(k+1)--> [copy to host, write or send]    its own thread: the next step runs meanwhile
Every rank takes the same calls in the same order; what the driver hears of a step or a push is rank 0's word.

Waits for: `train` for the buffer, and before it changes the weights for copies of them in flight and for a push that
was asked for to have taken the older copy; `publish` for the replicas. Unblocked by: buffer; the copy; replicas; the
deadline.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from asyncrl.checkpoint import files
from asyncrl.checkpoint.saver import BackgroundSaver
from asyncrl.checkpoint.snapshots import Snapshots
from asyncrl.cluster.rendezvous import Rendezvous, SealedStore, open_rendezvous
from asyncrl.control.messages import Train
from asyncrl.metric_names import nth
from asyncrl.models import load_tokenizer
from asyncrl.observe import relay, trace
from asyncrl.processes import orphans, stacks
from asyncrl.processes.crossing import crossing
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import TRANSPORTS
from asyncrl.rollout.trajectory import decode
from asyncrl.storage import atomic, private
from asyncrl.storage.run_dir import make_alike
from asyncrl.storage.sight import Sight
from asyncrl.trainer.backend import Setup, StepReport, TrainerBackend, backend_class
from asyncrl.trainer.ema import PREFIX, as_weights
from asyncrl.trainer.gpu_memory import explained
from asyncrl.trainer.messages import Loaded, ResumePoint, TrainResult, role
from asyncrl.weights.files import SHARED_MEMORY
from asyncrl.weights.replicas import RayReplicas
from asyncrl.weights.staging import Staging, require_finite
from asyncrl.weights.transport import Sender, SenderConfig, open_sender
from asyncrl.weights.update import PublishReport
from asyncrl.weights.verify import probe_tokens

logger = logging.getLogger(__name__)


@ray.remote(concurrency_groups={"push": 1, "save": 1, "notices": 1})
@crossing
class TrainerActor:
    """Calls run one at a time, but for those of the groups `push`, `save` and `notices`, which run beside them."""

    def __init__(
        self, recipe: Recipe, model: str, transport: str, base_dir: Path, sight: Sight, buffer: Any, rank: int
    ) -> None:
        relay.relay()
        self.rank = rank
        self.recipe = recipe
        self.model_path = model
        self.transport = transport
        self.base_dir = base_dir
        self.sight, self.run_dir = sight, sight.run_dir
        self.buffer = buffer
        self.store: SealedStore | None = None
        self.sender: Sender | None = None
        self.shared: Path | None = None

    def rendezvous(self) -> Rendezvous:
        """Where the ranks meet: rank 0 says it, and holds the place."""
        place, self.store = open_rendezvous(ray.util.get_node_ip_address(), self.recipe.deadlines.start_s)
        return place

    def start(self, origin: ResumePoint, snapshots: Snapshots | None, rendezvous: Rendezvous | None) -> Loaded:
        """Load the model and the state; `train_again` is for the batches of `origin`. `snapshots`: where to send new
        ones."""
        self.sight.require(f"trainer rank {self.rank}")
        stacks.record(self.run_dir / "stacks", role(self.rank))
        self.probe = probe_tokens(load_tokenizer(self.model_path), self.recipe.max_tokens)
        self.trainer = self._load(rendezvous, untouched=origin.is_initial and self.rank == 0)
        self.saver = BackgroundSaver(self.recipe.deadlines.checkpoint_s)
        self.trainer.before_update = self._before_update
        self.snapshots = snapshots
        initial = self._score_probe()
        if origin.snapshots is not None:
            self.trainer.restore(origin.snapshots.load(origin.version))
        elif origin.folder is not None:
            self.trainer.restore(files.read(origin.folder / "trainer"))
        self.staging = self._staging(origin.version)
        self._hold(max(origin.live, origin.version), origin.version)
        self.idle_since = trace.now()
        # Not before: what a hub gives is for whom its cache is.
        make_alike(self.run_dir)
        probes = initial, self._score_probe() if origin.version else initial
        return Loaded(orphans.here(), probes, self.trainer.kernels)

    def _load(self, rendezvous: Rendezvous | None, *, untouched: bool) -> TrainerBackend:
        scratch = atomic.begin(self.run_dir / "checkpoints", 0) if untouched else None
        text = tuple(self.probe)
        setup = Setup(self.recipe, self.model_path, self.base_dir, self.rank, rendezvous, self.store, text, scratch)
        try:
            with explained(self.recipe.trainer, "its start"):
                return backend_class(self.recipe, self.base_dir)(setup)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    @property
    def _dtype(self) -> torch.dtype:
        """Of weights that are sent and exported."""
        dtype: torch.dtype = getattr(torch, self.recipe.weights.dtype)
        return dtype

    def train_again(self, batch: Train, live: int) -> list[float] | None:
        """Train a batch that was trained before this process; `live` is the version that the generators hold, whose
        log-probs of the probe are returned."""
        self._learn(batch, publishing=-1)
        self._hold(live, batch.step + 1)
        self.idle_since = trace.now()
        return self._score_probe() if live == batch.step + 1 else None

    def _staging(self, version: int) -> Staging:
        copies, weights = TRANSPORTS[self.transport].copies, self.trainer.weight_shards()
        if copies == "shared_memory":
            # With this, what a trainer has left that was killed is gone.
            self.shared = private.make(SHARED_MEMORY)
        device = weights[0].tensor.device if copies == "gpu" else torch.device("cpu")
        return Staging(weights, version, self._dtype, device, self.shared)

    def _hold(self, live: int, version: int) -> None:
        """Keep the weights if they are those that the generators hold."""
        if live == version:
            self.staging.send(version)

    def _score_probe(self) -> list[float]:
        """Log-probs of the text that weights are verified with; every rank takes part."""
        return [] if self.transport == "none" else self.trainer.score(self.probe)

    def _learn(self, batch: Train, publishing: int) -> StepReport:
        self.publishing, self.wait_copy_s, self.wait_publish_s = publishing, 0.0, 0.0
        with trace.span("fetch"):
            frames = ray.get(self.buffer.take.remote(list(batch.groups)), timeout=self.recipe.deadlines.start_s)
            groups = [decode(frame) for frame in frames]
        with explained(self.recipe.trainer, f"step {nth(batch.step)}"):
            report = self.trainer.step(groups, batch.step, batch.min_version)
        self.staging.changed(batch.step + 1)
        return report

    def _before_update(self) -> None:
        with trace.span("wait for copies"):
            self.wait_copy_s += self.saver.wait_copied()
            began = time.perf_counter()
            self.staging.before_change(self.publishing, self.recipe.deadlines.step_s)
            self.wait_publish_s += time.perf_counter() - began

    def train(self, batch: Train, publishing: int, verifying: bool) -> TrainResult:
        """Train a batch. `publishing`: version whose push was asked for and has not ended (-1: none). `verifying`:
        score the probe with the new weights."""
        began = time.perf_counter()
        trace.add("wait for a batch", self.idle_since, trace.now())
        report = self._learn(batch, publishing)
        version = batch.step + 1
        probe = self._score_probe() if verifying else None
        every = self.recipe.checkpoint.snapshot_every_steps
        if self.snapshots and every and version % every == 0 and not self.saver.busy:
            self.saver.start(self.trainer.state(), lambda state: self._store(version, state))
        busy_s = time.perf_counter() - began - self.wait_publish_s - self.wait_copy_s
        self.idle_since = trace.now()
        return TrainResult(report, busy_s, self.wait_publish_s, self.wait_copy_s, trace.take(), probe)

    def _store(self, version: int, state: Mapping[str, torch.Tensor]) -> None:
        assert self.snapshots is not None
        try:
            self.snapshots.store(version, state)
        except Exception as error:
            # A snapshot only makes a recovery shorter: losing one must not end what it is there to protect.
            logger.warning("the snapshot of version %d was not taken: %s", version, error)

    @ray.method(concurrency_group="push")
    def open_sender(self) -> Any:
        """Open this rank's end of the weight transport, and say how to reach it; an earlier one is closed first."""
        if self.sender is not None:
            self.sender.close()
            self.sender = None
        config = SenderConfig(
            transport=self.transport,
            rank=self.rank,
            address=ray.util.get_node_ip_address(),
            timeout_s=self.recipe.deadlines.publish_s,
            dtype=self.recipe.weights.dtype,
            folder=self.run_dir / "weights",
            rolling=self.recipe.weights.rolling,
            adapters=self.trainer.adapters,
            group=self.trainer.sync_group,
        )
        self.sender = open_sender(config, self.staging.layout)
        return self.sender.endpoint()

    @ray.method(concurrency_group="push")
    def connect(self, replicas: RayReplicas, endpoints: list[Any]) -> None:
        """Connect all ranks' ends with these replicas."""
        assert self.sender is not None
        self.sender.connect(replicas if self.rank == 0 else None, replicas.num_workers, endpoints)

    @ray.method(concurrency_group="push")
    def stage(self, version: int | None) -> tuple[int, Any]:
        """Hold a copy of `version` (None: of the one sent last) for `publish`; which it is, and how to read it."""
        if self.sender is None:
            raise RuntimeError("stage before open_sender")
        with trace.span("stage", lane="push"):
            version, self.staged = self.staging.send(version)
            return version, self.sender.copy(version, self.staged)

    @ray.method(concurrency_group="push")
    def publish(self, version: int, copies: list[Any]) -> PublishReport:
        """Send what was staged to every replica; returns when it is live on all, or this rank has done its part.

        May be called again, after `stage`, if it failed.
        """
        assert self.sender is not None
        with trace.span("push", lane="push"):
            return self.sender.publish(version, self.staged, copies)

    def save(self, folder: Path) -> None:
        """Begin to write this rank's part of trainer/ into the checkpoint folder; returns before it is done.

        What is written is the state now: the next step may run, but changes nothing before the copy is taken.
        """
        state = self.trainer.state()
        require_finite({name: tensor for name, tensor in state.items() if name.startswith("model.")})

        def write(copies: Mapping[str, torch.Tensor]) -> None:
            with trace.span("write", lane="checkpoint"):
                files.write(copies, folder / "trainer", self.rank)

        self.saver.start(state, write)

    @ray.method(concurrency_group="save")
    def saved(self) -> None:
        """Returns once the checkpoint begun last is written; raises what went wrong."""
        self.saver.wait(self.recipe.deadlines.checkpoint_s)

    @ray.method(concurrency_group="save")
    def export(self, folder: Path) -> None:
        """Write model/ into a checkpoint folder that has all ranks' parts, and with `trainer.ema` model_ema/."""
        weights = files.read(folder / "trainer", prefix="model.")
        exported: dict[str, Mapping[str, Any]] = {"model": weights}
        if self.recipe.trainer.ema is not None:
            exported["model_ema"] = as_weights(files.read(folder / "trainer", prefix=PREFIX))
        tokenizer = load_tokenizer(self.model_path)
        for name, tensors in exported.items():
            self.trainer.export(tensors, folder / name, self._dtype)
            tokenizer.save_pretrained(folder / name)

    def compare_export(self, folder: Path) -> None:
        """Raises RunFailed if model/ of a checkpoint of the state now, loaded again, is another model; every rank takes
        part."""
        expected = self.trainer.score(self.probe)
        if self.rank == 0:
            weights = files.read(folder / "trainer", prefix="model.")
            self.trainer.compare_export(weights, folder / "model", expected, self.probe, self._dtype)

    @ray.method(concurrency_group="notices")
    def take_notices(self) -> list[relay.Notice]:
        """Warnings since the last call."""
        return relay.take()

    @ray.method(concurrency_group="notices")
    def close(self) -> None:
        """Nothing stays in shared memory but what is still mapped."""
        if self.shared is not None:
            private.remove(self.shared)

    @ray.method(concurrency_group="push")
    def ping(self) -> None:
        """A sign of life."""
