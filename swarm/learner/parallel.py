"""Several processes, one per GPU, that sample and train as one peer.

The node is rank 0 and has the only say; ranks from 1 on are helpers: child processes (see
`swarm.learner.parallel_helper`) that hold the same policy and learner, and do a share of what the node does.

- Sampling: rank r takes the groups r, r + n, r + 2n …, so that what is done at the deadline has few gaps.
- Learning: all ranks walk through the same update. Each makes the gradient of its share of a step's rows,
  these are added up, and every rank takes the same step, so the states stay the same bit for bit.

Before a command the node makes sure that the helpers have its weights (it may have loaded a checkpoint, or
sample with an older state). When a helper dies, fails or hangs, all helpers are ended, the node makes up for
what is missing, and goes on alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import msgspec
import torch

from swarm.errors import UsageError
from swarm.learner.batch import TrainingGroup
from swarm.learner.channel import (
    Channel,
    ChannelError,
    Go,
    Kind,
    Message,
    Ready,
    Recipe,
    Sample,
    Sampled,
    Share,
    Start,
    TakeState,
    Train,
    Trained,
    Whole,
)
from swarm.learner.parallel_learner import LEAST_PATIENCE_SECONDS, Step, patience
from swarm.learner.shared_memory import SharedMemory, fingerprint
from swarm.learner.trainer import Learner
from swarm.manifest import Sampling
from swarm.policy.plan import Plan

log = logging.getLogger("swarm.learner")

_START_SECONDS = 900.0  # for a helper to load the model
_POLL_SECONDS = 0.02
_END_SECONDS = 2.0


class Team:
    """The node's side: its helpers. A context manager; leaving it ends them. Not thread-safe."""

    rank = 0

    def __init__(self, recipe: Recipe, processes: int) -> None:
        """Start `processes` - 1 helpers, each on a GPU of its own if the plan's device is one.

        They load while the caller loads its own policy; `wait_until_ready` is to be called after that.
        `UsageError` if there are not so many GPUs.
        """
        self._ranks = processes
        self._helpers: list[_HelperProcess] = []
        # Fingerprints of the weights and of the rest that the helpers have.
        self._states: tuple[int, int] | None = None
        self._memory: SharedMemory | None = None
        if processes == 1:
            return
        gpus = _gpus_for_helpers(recipe.plan, processes - 1)
        if gpus:
            recipe = msgspec.structs.replace(
                recipe,
                plan=msgspec.structs.replace(recipe.plan, device="cuda:0"),  # the only one it sees
            )
        descriptor = SharedMemory.create(self._ranks)
        try:
            self._memory = SharedMemory(descriptor, self._ranks)
            for rank in range(1, self._ranks):
                gpu = gpus[rank - 1] if gpus else None
                self._helpers.append(_HelperProcess(Start(rank, processes, recipe), descriptor, gpu))
        finally:
            os.close(descriptor)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def processes(self) -> int:
        """How many there are now, the node itself included."""
        return 1 + len(self._helpers)

    @property
    def pids(self) -> list[int]:
        """Of the helpers."""
        return [helper.pid for helper in self._helpers]

    def wait_until_ready(self, timeout: float = _START_SECONDS) -> None:
        """Wait until all helpers have loaded; without them, if one cannot."""
        with self._alone_if_lost():
            for helper in self._helpers:
                helper.expect(Ready, timeout)

    def sample(
        self,
        learner: Learner,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[bytes]],
        *,
        max_tokens: int,
        sampling: Sampling,
        until: Callable[[], bool] | None = None,
    ) -> list[list[list[int]]]:
        """Like `Policy.sample` of the learner's policy as it is now, with the help of the others."""

        def alone(indices: Sequence[int], until: Callable[[], bool] | None) -> list[list[list[int]]]:
            return learner.policy.sample(
                [prompts[index] for index in indices],
                [seeds[index] for index in indices],
                max_tokens=max_tokens,
                sampling=sampling,
                until=until,
            )

        shares = [range(rank, len(prompts), self._ranks) for rank in range(self._ranks)]
        groups: dict[int, list[list[int]]] = {}
        with self._alone_if_lost():
            self._share_state(learner, whole=False)
            if self._memory is not None:
                self._memory.stop = False
            busy = [(helper, shares[helper.rank]) for helper in self._helpers if shares[helper.rank]]
            for helper, share in busy:
                its_seeds = [list(seeds[index]) for index in share]
                helper.send(Sample([prompts[index] for index in share], its_seeds, max_tokens, sampling))
            if busy:
                began = time.monotonic()
                groups |= zip(shares[0], alone(shares[0], until), strict=False)
                for helper, share in busy:
                    done = self._sampled(helper, until, time.monotonic() - began)
                    groups |= zip(share, done, strict=False)
        while len(groups) < len(prompts) and not (groups and until is not None and until()):
            missing = [index for index in range(len(prompts)) if index not in groups]
            groups |= zip(missing, alone(missing, until), strict=False)
        count = next((index for index in range(len(prompts)) if index not in groups), len(prompts))
        return [groups[index] for index in range(count)]

    def close(self) -> None:
        """End the helpers; bounded."""
        helpers, self._helpers = self._helpers, []
        self._states = None
        for helper in helpers:
            helper.let_go()
        deadline = time.monotonic() + _END_SECONDS
        for helper in helpers:
            helper.end(deadline)

    # What `ParallelLearner` does with it.

    def begin_update(self, learner: Learner, groups: Sequence[TrainingGroup]) -> None:
        """Have the helpers begin the same update from the same state."""
        with self._alone_if_lost():
            self._share_state(learner, whole=True)
            for helper in self._helpers:
                helper.send(Train(list(groups)))

    def end_update(self, learner: Learner, seconds: float) -> None:
        """See whether all came to the same state; a helper has `seconds` to say."""
        with self._alone_if_lost():
            if not self._helpers:
                return
            states = _fingerprints(learner)
            self._states = states
            for helper in self._helpers:
                if helper.expect(Trained, seconds).fingerprints != states:
                    log.warning("helper has another state rank=%d: it gets the node's", helper.rank)
                    self._states = None  # so the next command begins with giving it

    def add_up(self, step: Step, seconds: float) -> bool:
        """Sum up a step over all ranks; False if a helper was lost, and the step is to be made alone."""
        with self._alone_if_lost():
            if self._memory is None:
                return False
            present = step.present
            for helper in self._helpers:
                share = helper.expect(Share, seconds)
                step.sums += share.measured
                present = [mine or its for mine, its in zip(present, share.present, strict=True)]
            for helper in self._helpers:
                helper.send(Whole(present))
            self._memory.sum(0, step.tensors(present), self._meet)
            return True
        return False

    def _sampled(
        self, helper: _HelperProcess, until: Callable[[], bool] | None, own_seconds: float
    ) -> list[list[list[int]]]:
        assert self._memory is not None
        seconds = patience(own_seconds)
        deadline = time.monotonic() + seconds
        while not helper.has_something(_POLL_SECONDS):
            if until is not None and until():
                self._memory.stop = True
            if time.monotonic() > deadline:
                raise _HelperLost(helper.rank, f"it has not answered for {seconds:.0f} seconds")
        return helper.expect(Sampled, seconds).groups

    def _share_state(self, learner: Learner, whole: bool) -> None:
        """Have the helpers hold the learner's weights, and if `whole` the rest of its state."""
        if not self._helpers or self._memory is None:
            return
        states = _fingerprints(learner)
        had = self._states
        if had is not None and had[0] == states[0] and (not whole or had[1] == states[1]):
            return
        for helper in self._helpers:
            helper.send(TakeState(whole))
        self._memory.give(_state_tensors(learner, whole), self._meet)
        for helper in self._helpers:
            helper.expect(Ready, _START_SECONDS)
        # Of the rest the helpers keep what they had; unknown if nothing was ever given.
        self._states = (states[0], states[1] if whole else had[1] if had is not None else -1)

    def _meet(self) -> None:
        for helper in self._helpers:
            helper.expect(Ready, LEAST_PATIENCE_SECONDS)
        for helper in self._helpers:
            helper.send(Go())

    @contextlib.contextmanager
    def _alone_if_lost(self) -> Iterator[None]:
        try:
            yield
        except _HelperLost as error:
            log.warning("helper lost rank=%d error=%r: going on alone", error.rank, str(error))
            self.close()
        except BaseException:
            # The node failed in the middle of a command; nobody knows what the helpers wait for.
            self.close()
            raise


class _HelperLost(Exception):
    """A helper died, failed or does not answer."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(reason)
        self.rank = rank


class _HelperProcess:
    """A helper as the node sees it. All but `let_go` and `end` may raise `_HelperLost`."""

    def __init__(self, start: Start, memory: int, gpu: str | None) -> None:
        self.rank = start.rank
        ours, theirs = socket.socketpair()
        # A helper that hangs does not read: a message larger than the socket's buffer must not wait for ever.
        limit = struct.pack("@ll", int(LEAST_PATIENCE_SECONDS), 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        with theirs, (Path(start.recipe.work_dir) / f"helper-{start.rank}.log").open("wb") as output:
            # A session of its own: Ctrl-C in the terminal is for the node, which then lets its helpers go.
            # Its standard input is never written to: by its end a helper sees that the node is dead.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swarm.learner.parallel_helper", str(theirs.fileno()), str(memory)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(theirs.fileno(), memory),
                env={**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})},
            )
        self._channel = Channel(Connection(ours.detach()))
        self.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        with self._lost_if_gone():
            self._channel.send(message)

    def expect(self, kind: type[Kind], timeout: float) -> Kind:
        with self._lost_if_gone():
            return self._channel.expect(kind, timeout)

    def has_something(self, seconds: float) -> bool:
        with self._lost_if_gone():
            return self._channel.has_something(seconds)

    def let_go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._channel.close()

    def end(self, deadline: float) -> None:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def _lost_if_gone(self) -> Iterator[None]:
        try:
            yield
        except ChannelError as error:
            raise _HelperLost(self.rank, str(error)) from error


def _fingerprints(learner: Learner) -> tuple[int, int]:
    """Of the weights, and of the rest of the state."""
    return fingerprint(learner.weights()), fingerprint(learner.optimizer_state())


def _state_tensors(learner: Learner, whole: bool) -> list[torch.Tensor]:
    rest = learner.optimizer_state().values() if whole else ()
    return [*learner.weights().values(), *rest]


def _gpus_for_helpers(plan: Plan, helpers: int) -> list[str]:
    """For each helper a GPU, as `CUDA_VISIBLE_DEVICES` names it: those shown to the node less its own.

    Empty where the node is on none; `UsageError` if there are too few.
    """
    kind, _, index = plan.device.partition(":")
    if kind == "mps":
        raise UsageError(f"{helpers + 1} processes need as many GPUs, and a Mac has one; use --processes 1")
    if kind != "cuda":
        return []
    count = torch.cuda.device_count()
    if count <= helpers:
        raise UsageError(
            f"{helpers + 1} processes need as many GPUs; torch sees {count}: use --processes {count}"
        )
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",")[:count] if shown else [str(number) for number in range(count)]
    del gpus[int(index or 0)]
    return gpus[:helpers]
