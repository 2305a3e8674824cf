"""Processes that can only compute. Whatever strangers wrote is scored, parsed and run there and nowhere else.

node ── Confined ──control──▶ zygote: trusted; imports, loads data, forks
          └────── channel ──▶ worker: a fork of it after `confine`; it answers one request after the other
"""

from swarm.errors import SandboxDied, SandboxError, SandboxTimeout
from swarm.sandbox.confine import check_sandbox
from swarm.sandbox.forked import Forked
from swarm.sandbox.memory import unlimited_memory
from swarm.sandbox.process import Confined

__all__ = [
    "Confined",
    "Forked",
    "SandboxDied",
    "SandboxError",
    "SandboxTimeout",
    "check_sandbox",
    "unlimited_memory",
]
