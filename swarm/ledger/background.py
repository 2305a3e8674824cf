"""A thread whose failure reaches whoever relies on it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs `work` in a daemon thread. A mistake in it is raised again by `check`, not lost."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the end, at most so long; whether it has ended, or never began."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether `check` would raise."""
        return self._failure is not None

    def check(self) -> None:
        """Raise what ended the thread, if something did."""
        if self._failure is not None:
            raise RuntimeError(f"the {self._thread.name} thread failed") from self._failure

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error
            raise
