"""The task `code`: Python programs with unit tests."""

from swarm.tasks.code.task import Code

__all__ = ["Code"]
