"""Training curves: what a round measured, for TensorBoard and, when asked for, wandb or trackio.

A tracker is a convenience, and the libraries behind it are not ours: they wait for networks, ask for a login
on the terminal, print, and join threads when the interpreter ends. So every tracker has a thread of its own
with a bounded queue, and those that talk to a service run in a child process that can be killed
(`python -m swarm.learner.trackers`). TensorBoard's files are plain appends: the thread itself writes them.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import msgspec
from msgspec import Struct

from swarm.errors import UsageError
from swarm.learner.child import Child, end_after, one_line, serve

log = logging.getLogger("swarm.learner")

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "swarm-rl"  # what runs are filed under where a service has projects

_MAX_WAITING = 256  # rounds that a tracker may be behind before it is given up
_FINISH_SECONDS = 15.0  # for a service to take the last values


class Trackers:
    """All trackers of one node. None of them ever raises, waits or prints once this is made."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        run: str,
        config: Mapping[str, str | int | float | bool | None],
    ) -> None:
        """Begin, or go on with, the curves of `run`.

        Args:
            names: of `TRACKERS`. `UsageError` for another name, or one whose package is not installed.
            folder: TensorBoard's event files lie here; a restart with the same folder continues its curves.
            run: names the run to the services; a restart with the same name continues its curves.
            config: shown beside the curves.
        """
        for name in names:
            if name not in TRACKERS:
                raise UsageError(f"there is no tracker {name!r}; allowed are {', '.join(TRACKERS)}")
            if importlib.util.find_spec(name) is None:
                raise UsageError(f"tracker {name} is not installed: run `pip install {name}`")
        self._trackers = [
            _Tracker(name, _opener(name, folder, run, dict(config))) for name in dict.fromkeys(names)
        ]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve; `step` is the round, greater each time, also across restarts."""
        for tracker in self._trackers:
            tracker.log(_Point(step, time.time(), dict(values)))

    def close(self, timeout: float = _FINISH_SECONDS) -> None:
        """Let the trackers finish, all together within `timeout` seconds (and a little); then end them."""
        for tracker in self._trackers:
            tracker.finish()
        deadline = time.monotonic() + timeout
        for tracker in self._trackers:
            tracker.join(deadline)


class _Point(Struct, frozen=True):
    """The values of one step; `time` in Unix seconds."""

    step: int
    time: float
    values: dict[str, float]


class _Run(Struct, frozen=True):
    """What the child process is told first."""

    service: Literal["trackio", "wandb"]
    name: str
    folder: str
    config: dict[str, str | int | float | bool | None]


class _Writer(Protocol):
    """Where points go. Made and used in a tracker's thread; `kill` comes from any thread."""

    def write(self, point: _Point) -> None: ...

    def finish(self) -> None: ...

    def kill(self) -> None: ...


class _Tracker:
    """A writer in a thread of its own, switched off for good at its first failure."""

    def __init__(self, name: str, open_writer: Callable[[], _Writer]) -> None:
        self._name = name
        self._open = open_writer
        self._writer: _Writer | None = None
        self._points: queue.Queue[_Point | None] = queue.Queue(_MAX_WAITING)
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, point: _Point) -> None:
        if self._off.is_set():
            return
        try:
            self._points.put_nowait(point)
        except queue.Full:
            self._switch_off(f"it is {_MAX_WAITING} rounds behind")

    def finish(self) -> None:
        try:
            self._points.put_nowait(None)
        except queue.Full:
            self._switch_off(f"it is {_MAX_WAITING} rounds behind")

    def join(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._switch_off("it did not finish in time")
            self._thread.join(1.0)

    def _work(self) -> None:
        try:
            self._writer = self._open()
            while (point := self._points.get()) is not None:
                self._writer.write(point)
            self._writer.finish()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library does, training goes on
            self._switch_off(one_line(error))

    def _switch_off(self, reason: str) -> None:
        if not self._off.is_set():
            self._off.set()
            log.warning("tracker switched off name=%s error=%r", self._name, reason)
        if self._writer is not None:
            self._writer.kill()


def _opener(
    name: str, folder: Path, run: str, config: dict[str, str | int | float | bool | None]
) -> Callable[[], _Writer]:
    match name:
        case "tensorboard":
            return lambda: _EventFile(folder, config)
        case "trackio" | "wandb":
            return lambda: _Service(_Run(name, run, str(folder), config))
    raise ValueError(name)


class _EventFile:
    """TensorBoard's file format, by its own record writer.

    Not its `SummaryWriter`: that has a thread which prints a traceback when the disk is full.
    """

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        from tensorboard.compat.proto import (  # type: ignore[import-untyped]
            event_pb2,
            summary_pb2,
            tensor_pb2,
            types_pb2,
        )
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._protocol, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # Readers take a folder's files in the order of the time in their names.
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO = (folder / f"{stem}.{time.monotonic_ns()}").open("xb")
        self._records = RecordWriter(self._file)
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if config:
            table = "".join(f"|{key}|{value}|\n" for key, value in config.items())
            text = tensor_pb2.TensorProto(
                dtype=types_pb2.DT_STRING, string_val=[f"|setting|value|\n|---|---|\n{table}".encode()]
            )
            plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
            value = summary_pb2.Summary.Value(
                tag="config", tensor=text, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin)
            )
            self._add(event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value])))

    def write(self, point: _Point) -> None:
        """Append one event and hand it to the system, so that a crash loses nothing."""
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()
        ]
        summary = self._summary.Summary(value=values)
        self._add(self._protocol.Event(wall_time=point.time, step=point.step, summary=summary))

    def finish(self) -> None:
        self._file.close()

    def kill(self) -> None:
        pass  # an append ends by itself

    def _add(self, event: object) -> None:
        self._records.write(event.SerializeToString())  # type: ignore[attr-defined]
        self._file.flush()


class _Service:
    """A child process with the service's library."""

    def __init__(self, run: _Run) -> None:
        self._child = Child("swarm.learner.trackers")
        self._child.send(run)

    def write(self, point: _Point) -> None:
        # JSON has no infinity and no NaN.
        finite = {name: value for name, value in point.values.items() if math.isfinite(value)}
        self._child.send(_Point(point.step, point.time, finite))

    def finish(self) -> None:
        self._child.close_input()
        self._child.wait()

    def kill(self) -> None:
        self._child.kill()


def _track(messages: BinaryIO) -> None:
    """The child's work: a `_Run`, then `_Point`s until the end of the input."""
    run = msgspec.json.decode(messages.readline(), type=_Run)
    service = _start_trackio(run) if run.service == "trackio" else _start_wandb(run)
    for line in messages:
        point = msgspec.json.decode(line, type=_Point)
        service.log(point.values, step=point.step)
    # The node may be dead, and nobody else would end us if the service never answers.
    end_after(_FINISH_SECONDS)
    service.finish()


class _ServiceRun(Protocol):
    """What runs of wandb and trackio have in common."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def _start_wandb(run: _Run) -> _ServiceRun:
    wandb = importlib.import_module("wandb")
    # WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and the login are the user's, and as for any other program.
    run_of_wandb: _ServiceRun = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=re.sub(r"[^\w-]", "-", run.name)[:64],
        name=run.name,
        dir=run.folder,
        config=run.config,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    return run_of_wandb


def _start_trackio(run: _Run) -> _ServiceRun:
    trackio = importlib.import_module("trackio")
    run_of_trackio: _ServiceRun = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=run.name,
        config=run.config,
        resume="allow",
        embed=False,
    )
    return run_of_trackio


if __name__ == "__main__":
    serve(_track)
