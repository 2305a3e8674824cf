"""A helper: a child process of the node that does a share of its sampling and learning.

Run as `python -m swarm.learner.parallel_helper SOCKET MEMORY` by `swarm.learner.parallel`. It ends when its
standard input does, so it does not outlive a node that was killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import torch

from swarm.learner.batch import TrainingGroup
from swarm.learner.channel import (
    Channel,
    ChannelError,
    Failed,
    Go,
    Ready,
    Sample,
    Sampled,
    Share,
    Start,
    TakeState,
    Train,
    Trained,
    Whole,
)
from swarm.learner.checkpoints import LearnerState
from swarm.learner.child import one_line
from swarm.learner.parallel_learner import ParallelLearner, Step
from swarm.learner.shared_memory import SharedMemory, fingerprint
from swarm.learner.trainer import Learner
from swarm.policy.model import Policy


class _Node:
    """The node as a helper sees it."""

    def __init__(self, channel: Channel, memory: SharedMemory, start: Start) -> None:
        self.rank = start.rank
        self.processes = start.ranks
        self._channel = channel
        self._memory = memory

    def serve(self, learner: Learner) -> None:
        """Do what the node says; ends with a `ChannelError`."""
        self._channel.send(Ready())
        while True:
            match self._channel.receive():
                case TakeState(whole):
                    self._take_state(learner, whole)
                    self._channel.send(Ready())
                case Sample(prompts, seeds, max_tokens, sampling):
                    groups = learner.policy.sample(
                        prompts,
                        seeds,
                        max_tokens=max_tokens,
                        sampling=sampling,
                        until=lambda: self._memory.stop,
                    )
                    self._channel.send(Sampled(groups))
                case Train(groups):
                    learner.update(groups)
                    self._channel.send(
                        Trained((fingerprint(learner.weights()), fingerprint(learner.optimizer_state())))
                    )
                case message:
                    raise ChannelError(f"the node said {type(message).__name__}")

    def begin_update(self, learner: Learner, groups: Sequence[TrainingGroup]) -> None:
        """The node's part."""

    def end_update(self, learner: Learner, seconds: float) -> None:
        """The node's part."""

    def close(self) -> None:
        """The node's part."""

    def add_up(self, step: Step, seconds: float) -> bool:
        """Sum up a step over all ranks; the node may take as long as it wants."""
        self._channel.send(Share(step.sums, step.present))
        present = self._channel.expect(Whole).present
        self._memory.sum(self.rank, step.tensors(present), self._meet)
        return True

    def _meet(self) -> None:
        self._channel.send(Ready())
        self._channel.expect(Go)

    @torch.no_grad()
    def _take_state(self, learner: Learner, whole: bool) -> None:
        weights = learner.weights()
        # Some of the rest are copies, so it is put back as a whole.
        rest = {
            name: torch.empty_like(tensor, device="cpu") for name, tensor in learner.optimizer_state().items()
        }
        tensors = [*weights.values(), *(rest.values() if whole else ())]
        self._memory.take(tensors, self._meet)
        if whole:
            learner.restore(LearnerState(weights, rest))


def _end_with(life: BinaryIO) -> None:
    """End at once when the node does, whatever is under way."""
    with contextlib.suppress(OSError):
        life.read()
    os._exit(1)


def main() -> None:
    """A helper's life. Arguments: the file descriptors of its socket and of the memory."""
    descriptor, memory = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=[sys.stdin.buffer], daemon=True).start()
    channel = Channel(Connection(descriptor))
    try:
        start = channel.expect(Start)
        recipe = start.recipe
        node = _Node(channel, SharedMemory(memory, start.ranks), start)
        policy = Policy.of(recipe.plan, recipe.threads, recipe.trusted_code)
        learner = ParallelLearner(
            node,
            policy,
            recipe.learn,
            recipe.group_size,
            recipe.temperature,
            recipe.max_completion_tokens,
            Path(recipe.work_dir),
        )
        learner.max_tokens_at_once = recipe.plan.learning_tokens_at_once
        node.serve(learner)
    except ChannelError:
        return  # the node is gone, or has let us go
    except Exception as error:  # noqa: BLE001 - whatever it is, the node logs it in one line
        with contextlib.suppress(ChannelError):
            channel.send(Failed(one_line(error)))


if __name__ == "__main__":
    main()
