"""The node's side of a sandbox."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import msgspec

from swarm.errors import SandboxDied, SandboxError, SandboxTimeout, UsageError
from swarm.sandbox import zygote
from swarm.sandbox.channel import Channel
from swarm.sandbox.confine import unsupported

MEMORY_BYTES = 2 << 30
_SHORT_OF_MEMORY = (-9, -6)  # the kernel kills then, and native code often aborts
GREETING_SECONDS = 60.0  # a fork and a few system calls; a machine that swaps takes its time
# What `prepare` may need of our environment: where files, caches and the network are. No tokens; a proxy's
# address may have a password, so workers get nothing of this but HOME.
_ENVIRONMENT = (
    *("HOME", "SWARM_HOME", "SWARM_MACHINE_DIR", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "DYLD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)


class Confined:
    """A handler of ours that runs in a process which can only compute. Calls wait for one another.

    A request that takes the process over can do no harm outside, but the answers to the next ones may be its
    own. `refresh` ends that, too; it takes milliseconds.
    """

    def __init__(
        self, module: str, argument: bytes = b"", *, memory_bytes: int = MEMORY_BYTES, hash_seed: int = 0
    ) -> None:
        """Start a process that imports `module` and calls its `prepare(argument)`, not confined yet.

        What that returns, `Callable[[bytes], bytes]`, answers the calls, in forks that are confined and whose
        memory grows by at most `memory_bytes`; by then it must have imported and opened all that it needs.
        Waits until it is ready. `SandboxError` with the reason if this machine cannot sandbox, or `prepare`
        raised or needed more than `memory.prepare_bytes()`; `UsageError` if `prepare` raised that.
        """
        if reason := unsupported():
            raise SandboxError(reason)
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._folder = tempfile.mkdtemp(prefix="swarm-sandbox-")
        self._control, theirs = socket.socketpair()
        with theirs:
            numbers = [str(memory_bytes), str(theirs.fileno())]
            self._process = subprocess.Popen(
                # Not -I: it would ignore the fixed seed of hashes, on which the order of sets depends. What
                # it does more than -P and -s is to ignore the environment, and that is ours.
                [sys.executable, "-P", "-s", "-m", "swarm.sandbox", module, *numbers],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=self._folder,
                env=_environment(hash_seed),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is for us
            )
        try:
            self._prepare(argument)
            self._renew()
            assert self._channel is not None
            self._channel.greeting(GREETING_SECONDS)
        except BaseException:
            self.close()
            raise

    def call(self, request: bytes, seconds: float) -> bytes:
        """The handler's answer: bytes of at most `MOST_ANSWER_BYTES` that a stranger may have made.

        `SandboxTimeout` after `seconds`; `SandboxDied` if the process crashed, used too much memory, or the
        handler raised. Then the next call finds a new process. `SandboxError` if there is none to be had.
        """
        with self._lock:
            if self._channel is None:
                raise SandboxError("the sandbox is closed, or its process was ended from outside")
            try:
                return self._channel.ask(request, seconds)
            except SandboxTimeout:
                self._renew_quietly()
                raise
            except SandboxDied as error:
                raise SandboxDied(f"{error}{_how(self._renew_quietly())}") from None
            except BaseException:  # Ctrl-C: what comes next on the channel is not for the next call
                self._renew_quietly()
                raise

    def refresh(self) -> None:
        """Go on with a new worker, which knows nothing of earlier calls."""
        with self._lock:
            if self._channel is None:
                raise SandboxError("the sandbox is closed, or its process was ended from outside")
            try:
                self._renew()
                self._channel.greeting(GREETING_SECONDS)
            except BaseException:  # a greeting that comes late would be taken for an answer
                if self._channel is not None:
                    self._channel.close()
                    self._channel = None
                raise

    def close(self) -> None:
        """End the processes at once; may come from any thread, also during a call."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with self._lock:
            self._process.wait()
            self._control.close()
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Confined:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, argument: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            zygote.send(self._control, argument)
        said = zygote.receive(self._control)
        if said is None:
            status = self._process.wait()
            why = ", perhaps for want of memory" if status in _SHORT_OF_MEMORY else ""
            raise SandboxError(f"the sandbox's process ended while it prepared{_how(status)}{why}")
        prepared = msgspec.json.decode(said, type=zygote.Prepared)
        if prepared.reason:
            raise (UsageError if prepared.usage else SandboxError)(prepared.reason)

    def _renew(self) -> int | None:
        """End the worker and get a new one; how the old one ended."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [zygote.FORK], [theirs.fileno()])
            except OSError:
                ours.close()
                raise SandboxError("the sandbox's process was ended from outside") from None
        said = zygote.receive(self._control)
        if said is None:
            ours.close()
            raise SandboxError("the sandbox's process was ended from outside")
        self._channel = Channel(ours)
        return msgspec.json.decode(said, type=zygote.Forked).ended

    def _renew_quietly(self) -> int | None:
        """The same after a failed call, whose own error is the one to raise."""
        try:
            ended = self._renew()
            assert self._channel is not None
            self._channel.greeting(GREETING_SECONDS)
        except SandboxError:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            return None
        return ended


def _how(status: int | None) -> str:
    """How a process ended, to follow what happened."""
    if status is None or status in (0, -signal.SIGKILL):
        return ""
    return f" (signal {-status})" if status < 0 else f" (exit code {status})"


def _environment(hash_seed: int) -> dict[str, str]:
    """Little, and what makes it find the modules that we would."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return kept | {"PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed), "LANG": "C.UTF-8"}
