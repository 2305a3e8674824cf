"""What `swarm doctor` finds: one `Check` for each thing that it looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from identity import Identity
from swarm.exchange.reach import Reach
from swarm.ledger.join import JoinLine
from swarm.settings import Settings

if TYPE_CHECKING:
    from swarm.ledger.client import LedgerClient

State = Literal["ok", "warning", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """What was looked at and how it is, each in one line; `advice` is empty if there is nothing to do."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass
class Patient:
    """What the doctor was asked about, and what earlier checks found out for later ones."""

    settings: Settings
    line: JoinLine | None
    reach: Reach
    running: bool  # whether a node holds the home
    identity: Identity | None = None
    ledger: LedgerClient | None = None  # of a swarm that is there
    bootnodes: list[str] = field(default_factory=list)  # that the ledger lists


def diagnosis(name: str, state: State, found: str, advice: str = "") -> Check:
    """A check whose texts, which may hold words of servers and peers, are one line each."""
    return Check(name=name, state=state, found=one_line(found), advice=one_line(advice))


def one_line(text: object) -> str:
    """Printable characters only, and not too many."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:500]
