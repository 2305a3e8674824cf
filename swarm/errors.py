"""Every error that `swarm` raises on purpose.

    SwarmError             one line for the user: what is wrong, with what, what to do; exit code 1
    ├── UsageError         the command line, settings or manifest are wrong; exit code 2
    ├── LedgerError        the ledger refused or is not what was expected
    │   ├── LedgerUnavailable   it did not answer; trying again later can help
    │   └── WrongLedger    another chain, or no contract of a swarm, is where one was expected
    ├── ExchangeError      a peer, blob or the DHT failed us; the round goes on without it
    │   ├── ExchangeDown   our own libp2p or disk failed us; no peer is to blame
    │   └── WireError      bytes from a peer are not what the protocol allows
    ├── ModelError         a model or checkpoint cannot be loaded or does not fit
    └── SandboxError       what scores strangers' text cannot be started, or failed
        ├── SandboxTimeout it took too long and was ended
        └── SandboxDied    it ended, or was ended for what it did: a crash, memory, too much output

`identity.IdentityError` stands beside this tree: `identity` imports nothing of `swarm`.
"""

from __future__ import annotations


class SwarmError(Exception):
    """Base of all; its message is one line for the user."""


class UsageError(SwarmError):
    """The user asked for something that cannot be: bad arguments, settings or manifest."""


class LedgerError(SwarmError):
    """The ledger refused a call (the contract's error in words) or is not the expected contract."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer in time or at all."""


class WrongLedger(LedgerError):
    """Another chain than before answers, or what is at the address is no swarm's contract."""


class ExchangeError(SwarmError):
    """Another peer, a blob or the DHT failed us."""


class ExchangeDown(ExchangeError):
    """Our own side of the exchange failed: libp2p is down, the disk is full."""


class WireError(ExchangeError):
    """Bytes from a peer do not decode into what the protocol allows; the message is the reason to count."""


class ModelError(SwarmError):
    """A model, tokenizer or checkpoint cannot be used."""


class SandboxError(SwarmError):
    """This machine cannot sandbox, or what was to run there could not be prepared."""


class SandboxTimeout(SandboxError):
    """A call took longer than it was given; the next one finds a new process."""


class SandboxDied(SandboxError):
    """The confined process ended in a call; the next one finds a new process."""
