"""TensorBoard's own event writer: torch's would load torch into the driver for nothing. Samples are text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

if TYPE_CHECKING:
    from asyncrl.observe.trackers import TrackedRun

_INDENT = "\n    "
"""Markdown's sign for text that is shown as it is."""


class TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        self._writer = EventFileWriter(str(run.dir / "tensorboard"))
        self._started = False
        self._texts_to = -1

    def log(self, step: int, scalars: dict[str, float]) -> None:
        if not self._started:
            # Tells TensorBoard to forget the steps from here on of a run that was resumed.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))
            self._started = True
        self._add(step, [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        self._writer.flush()

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Each step's text once: TensorBoard keeps them by step itself."""
        for of_step in sorted({row["step"] for row in rows} - set(range(self._texts_to + 1))):
            text = "\n\n".join(_text(row) for row in rows if row["step"] == of_step)
            self._add(of_step, [_text_value("samples", text)])
            self._texts_to = of_step

    def _add(self, step: int, values: list[summary_pb2.Summary.Value]) -> None:
        self._writer.add_event(
            event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))
        )

    def close(self) -> None:
        self._writer.close()


def _text(row: dict[str, Any]) -> str:
    reward = "failed" if row["reward"] is None else f"{row['reward']:.3g}"
    title = f"**task {row['task']}, reward {reward}, version {row['versions']}**"
    return "\n\n".join((title, *(_INDENT[1:] + row[key].replace("\n", _INDENT) for key in ("prompt", "completion"))))


def _text_value(tag: str, text: str) -> summary_pb2.Summary.Value:
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        string_val=[text.encode()],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
    )
    metadata = create_summary_metadata(display_name=tag, description="some trajectories of a step")
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
