"""The least that a sandbox can run: it answers what it is asked. For `check_sandbox`."""

from __future__ import annotations

from collections.abc import Callable


def prepare(argument: bytes) -> Callable[[bytes], bytes]:
    """A handler that puts `argument` before each request."""
    return lambda request: argument + request
