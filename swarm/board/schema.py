"""What the board's API answers: its OpenAPI description is made from these models.

Rewards and scores are integer micro-units, times Unix seconds on the ledger's clock, peers libp2p peer ids,
digests lower-case hex. Whatever peers wrote (names of tools in their logs, answers, reasons of verdicts) is
text for people: control characters are shown as such, and none of it is ever markup.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all: what is answered does not change."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class StageTime(Answer):
    """A part of each round."""

    name: str
    ends_at: float
    """The fraction of the round at which it ends."""


class SwarmFacts(Answer):
    """What never changes about the swarm."""

    swarm: str
    """Its id: SHA-256 of the canonical manifest."""
    name: str
    address: str
    """The contract's."""
    chain_id: int
    deployment_block: int
    genesis: int
    round_seconds: int
    stages: list[StageTime]
    """In order; then `learn`, and `report` to the round's end."""
    cell_size: int
    group_size: int
    rewards: dict[str, float]
    """The most that a completion earns, by stage."""
    tasks: list[str]
    models: list[str]
    join: str
    """The line for `swarm join`. An RPC URL that may hold somebody's API key is left out of it."""


class Pulse(Answer):
    """The swarm right now."""

    at: float
    """The ledger's time when this was made; go on from here with your own clock."""
    round: int
    """-1 before the first one begins."""
    stage: str
    """`waiting` before the first round, else a stage's name, `learn` or `report`."""
    stage_ends_at: float
    round_ends_at: float
    alive: int
    """Peers that reported in this round or one of the two before."""
    reported: int
    """Peers whose report of this round is on the ledger."""
    cells: int
    peers: int
    """Registered ones."""
    ledger: Literal["ok", "reading", "away"]
    """`reading`: of the past; what is shown is older. `away`: it does not answer."""
    trouble: str
    """Why the ledger is away, in one line; else empty."""
    block: int
    """The last block that was read; -1: none yet."""
    latest_block: int
    standings_round: int
    """The round as of whose beginning the leaderboard is; -1: not made yet."""
    version: int
    """Grows whenever anything below /leaderboard, /peers or /rounds may have changed."""


class Rank(Answer):
    """A line of the leaderboard."""

    rank: int | None
    """None: it never reported."""
    peer: str
    name: str
    account: str
    rounds: int
    """Reported."""
    ranked_rounds: int
    """Of these, those that count."""
    verified_reward: int
    """The reward of the ranked rounds."""
    claimed_reward: int
    """Of all rounds reported on time, whatever audits said."""
    score: int
    """Reputation: 0 to 1,000,000."""
    value: int
    """What the leaderboard sorts by: verified reward, times the score (as a number up to 1) squared."""
    audits_passed: int
    audits_failed: int
    eligible: bool
    """Whether others learn from it."""
    trend: list[int | None]
    """The rewards of the last 24 rounds, oldest first; None: no report."""
    last_round: int | None
    """That it reported."""
    own: bool
    """Whether it is one of this board's user."""


class Leaderboard(Answer):
    """Peers by verified contribution."""

    round: int
    """As of whose beginning; -1: none yet."""
    total: int
    """How many there are, or how many were found."""
    offset: int
    rows: list[Rank]


class Report(Answer):
    """A peer's report of one round, as the ledger has it."""

    peer: str
    """The key that it had then."""
    round: int
    at: int
    """When its round began."""
    reward: int
    groups: int
    late: bool
    ranked: bool | None
    """Whether it counts; None: that is not known yet."""
    outcome: Literal["passed", "failed", "unranked", "withheld", "undecided"] | None
    """What audits settled; None: nothing, or nothing yet."""
    commitment: str
    state_before: str
    state_after: str
    follows: bool | None
    """Whether it begins with the state that the peer's report before it left; None: it is the first, or this
    was not looked at (in the list of a round)."""
    tx: str
    block: int


class Reports(Answer):
    """Reports, newest round first."""

    reports: list[Report]
    next: str | None
    """Ask with `before=` this for older ones; None: there are none."""


class Voice(Answer):
    """What one auditor said."""

    peer: str
    name: str
    outcome: Literal["passed", "failed", "unranked", "withheld"]
    counted: bool
    """Whether it is what was settled."""


class Fault(Answer):
    """One thing that auditors found wrong."""

    check: Literal["commitment", "batch", "provenance", "step", "availability"]
    count: int
    """Completions (provenance), numbers of the state (step) or micro-units (batch); 0: unknown."""
    detail: str
    """An auditor's words."""


class Verdict(Answer):
    """How the audit of one report ended."""

    peer: str
    name: str
    round: int
    settled_in: int
    """The round."""
    outcome: Literal["passed", "failed", "unranked", "withheld", "undecided"]
    """`undecided`: too few could say."""
    audit_class: Literal["tolerant", "same-build", "exact"]
    faults: list[Fault]
    planted: bool
    """The peer had made the fault on purpose, to test its auditors, and said so."""
    voices: list[Voice]


class Verdicts(Answer):
    """Settled audits, the newest first."""

    verdicts: list[Verdict]
    next: str | None
    """Ask with `before=` this for older ones; None: there are none."""


class Binding(Answer):
    """That an account speaks for a peer from a block on, or that its key was rotated."""

    block: int
    account: str
    """Empty for a rotation."""
    peer: str
    """The key; of a rotation the new one."""
    tx: str


class PeerPage(Answer):
    """All of one peer but its rounds and audits, which have pages of their own."""

    rank: Rank
    age: int
    """Reports in the unbroken chain of states."""
    probation_until: int
    """The first round in which it is not on probation any more; 0: it never was."""
    rooted: bool
    """Whether its state comes from its first one by reports without fault."""
    state: str
    commitment: str
    """Of its newest report; empty if there is none."""
    bindings: list[Binding]
    doing: str
    """Of an own peer that runs here: what it does right now; else empty."""


class Round(Answer):
    """One round of the swarm."""

    round: int
    began_at: int
    beacon: str
    """Empty if the ledger made no block in it."""
    block: int
    reports: int
    """On time."""
    late: int
    mean_reward: int | None
    """Of the reports on time; None: the round is not over."""
    best_reward: int | None


class Rounds(Answer):
    """Rounds, newest first."""

    rounds: list[Round]
    next: int | None
    """Ask with `before=` this for older ones; None: there are none."""


class Point(Answer):
    """The rewards of one round, or of some together where there are many."""

    round: int
    """The last one."""
    mean: int
    low: int
    """A tenth of the reports are below."""
    high: int
    """A tenth of the reports are above."""
    reports: int


class Curve(Answer):
    """The swarm's rewards over time, oldest first."""

    rounds_per_point: int
    points: list[Point]


class Completion(Answer):
    """What a peer's model wrote."""

    text: str
    cut: bool
    """There was more."""
    score: float | None
    """Of an answer or a revision: the task's, 0 to 1, computed here. Of a critique: what it earned. None: it
    was not computed (in time)."""
    names: str | None
    """Of critiques and revisions: the student that they name ("A", "B" ...), or "none"; None: unreadable."""


class Said(Answer):
    """One peer's group."""

    peer: str
    name: str
    shown: list[str]
    """Of critiques and revisions: who is student A, B ... in its prompt (names of peers)."""
    completions: list[Completion]


class Thread(Answer):
    """What was said about one question."""

    question: str
    answer: str
    """The true one; empty until the answers are in, or if the task has none in words."""
    proposed_by: str
    """A peer's name; empty: the beacon drew it."""
    answers: list[Said]
    critiques: list[Said]
    revisions: list[Said]


class Conversation(Answer):
    """The gossip of one cell in one round, as far as it was heard."""

    round: int
    """-1: nothing was heard yet."""
    cell: int
    cells: int
    heard: list[str]
    """The stages of which it is known by now who said what."""
    peers: int
    """That said anything."""
    threads: list[Thread]
    left_out: dict[str, int]
    """What was not shown, by reason."""
    trouble: str
    """Why nothing can be heard, in one line; else empty."""


class Health(Answer):
    """Whether the board works."""

    status: Literal["ok", "reading", "away"]
    """As in the pulse."""
    behind_seconds: float
    """Since all that the ledger had was taken in; -1: it never was."""
    version: str
    """Of swarm-rl."""


class Problem(Answer):
    """Why there is no other answer."""

    detail: str
