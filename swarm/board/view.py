"""What the board answers, made from the index and from memory: each function one kind of answer."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from identity import peer_id_text, peer_name
from swarm.board import schema
from swarm.board.index_reader import IndexReader, KeptReport, KeptRound
from swarm.board.known import TREND_ROUNDS, Known
from swarm.ledger.client import LedgerClient
from swarm.manifest import MICROS
from swarm.records import Records
from swarm.verde.cases import Settled
from swarm.verde.standing import Standing
from swarm.verde.verdicts import Check, Outcome

NEVER = 2**62  # above every round and number of an event

OutcomeName = Literal["passed", "failed", "unranked", "withheld", "undecided"]
Settlement = Literal["passed", "failed", "unranked", "withheld"]
_OUTCOMES: dict[Outcome, Settlement] = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.UNRANKED: "unranked",
    Outcome.WITHHELD: "withheld",
}
_CLASSES: tuple[Literal["tolerant", "same-build", "exact"], ...] = ("tolerant", "same-build", "exact")
_CHECKS: dict[Check, Literal["commitment", "batch", "provenance", "step", "availability"]] = {
    Check.COMMITMENT: "commitment",
    Check.BATCH: "batch",
    Check.PROVENANCE: "provenance",
    Check.STEP: "step",
    Check.AVAILABILITY: "availability",
}


class Ranks(Struct, frozen=True):
    """All peers as of one version, in the leaderboard's order; those that never reported at the end."""

    version: int
    round: int
    reported: int  # how many of `rows` have a rank
    rows: list[schema.Rank]
    words: list[str]  # of each row, what a search looks through
    place: dict[bytes, int]  # of each peer's current key, in `rows`
    by_name: dict[str, bytes]  # keys by name and by account, in lower case; of several the first


NO_RANKS = Ranks(-1, -1, 0, [], [], {}, {})


@cache
def _named(peer: bytes) -> tuple[str, str]:
    return peer_id_text(peer), peer_name(peer)


def swarm_facts(ledger: LedgerClient, public_line: str | None) -> schema.SwarmFacts:
    """What never changes. `public_line`: the join line to show, if not the ledger's own."""
    manifest = ledger.manifest()
    stages = [schema.StageTime(name=stage.name, ends_at=stage.ends_at) for stage in manifest.stages]
    stages += [
        schema.StageTime(name="learn", ends_at=manifest.learn.ends_at),
        schema.StageTime(name="report", ends_at=1.0),
    ]
    return schema.SwarmFacts(
        swarm=ledger.swarm_id.hex(),
        name=manifest.name,
        address=ledger.address,
        chain_id=ledger.chain_id,
        deployment_block=ledger.deployment_block,
        genesis=ledger.genesis,
        round_seconds=manifest.round_seconds,
        stages=stages,
        cell_size=manifest.cell_size,
        group_size=manifest.group_size,
        rewards={stage.name: manifest.rewards.most(stage.name) for stage in manifest.stages},
        tasks=[choice.name for choice in manifest.tasks],
        models=list(manifest.models),
        join=public_line or f"{ledger.address}@{_public_url(ledger.rpc_url, ledger.chain_id)}",
    )


def _public_url(url: str, chain_id: int) -> str:
    """The URL, unless it may hold somebody's API key."""
    parts = urlsplit(url)
    bare = not (parts.username or parts.password or parts.path.strip("/") or parts.query)
    return url if bare else f"YOUR-RPC-URL-OF-CHAIN-{chain_id}"


def pulse(known: Known, version: int) -> schema.Pulse:
    """The swarm right now. `version` is that of the answers that are given now."""
    manifest, now, number = known.manifest, known.clock(), known.current_round
    begins = known.starts_at(number)
    stage, ends = "waiting", float(known.facts.genesis)
    if number >= 0:
        times = [(one.name, one.ends_at) for one in manifest.stages] + [("learn", manifest.learn.ends_at)]
        fraction = (now - begins) / manifest.round_seconds
        stage, share = next(((name, end) for name, end in times if fraction < end), ("report", 1.0))
        ends = begins + share * manifest.round_seconds
    drawn = known.draw()
    alive, reported = known.alive(number)
    return schema.Pulse.model_construct(
        at=now,
        round=max(-1, number),
        stage=stage,
        stage_ends_at=ends,
        round_ends_at=ends if number < 0 else float(begins + manifest.round_seconds),
        alive=alive,
        reported=reported,
        cells=drawn[1].cells if drawn else 0,
        peers=len(known.accounts),
        ledger=known.state,
        trouble=known.trouble,
        block=known.block,
        latest_block=known.latest_block,
        standings_round=known.standings_round,
        version=version,
    )


def health(known: Known) -> schema.Health:
    """Whether the board works."""
    return schema.Health(status=known.state, behind_seconds=known.behind_seconds, version=version("swarm-rl"))


def ranks(known: Known) -> Ranks:
    """Every peer's line."""
    number, accounts, trends = known.version, known.accounts, known.trends()
    with known.reputation() as reputation:
        round_number = reputation.number if reputation else -1
        standings = reputation.standings() if reputation else []
    current = known.current_round
    shown = range(max(0, current - TREND_ROUNDS + 1), current + 1)
    ranked = {standing.peer for standing in standings}
    rest = [peer for peer in accounts if peer not in ranked]
    peers = [*(standing.peer for standing in standings), *rest]
    lines = [_standing_line(standing, place) for place, standing in enumerate(standings, 1)]
    lines += [_newcomer_line(accounts[peer]) for peer in rest]
    rows = []
    for peer, line in zip(peers, lines, strict=True):
        text, name = _named(peer)
        trend = trends.get(peer, {})
        rows.append(
            schema.Rank.model_construct(
                peer=text,
                name=name,
                trend=[trend.get(one) for one in shown],
                last_round=max(trend, default=None),
                own=False,
                **line,
            )
        )
    by_name: dict[str, bytes] = {}
    for peer, row in zip(peers, rows, strict=True):
        by_name.setdefault(row.name.lower(), peer)
        by_name.setdefault(row.account.lower(), peer)
    return Ranks(
        version=number,
        round=round_number,
        reported=len(standings),
        rows=rows,
        words=[f"{row.name} {row.peer} {row.account}".lower() for row in rows],
        place={peer: place for place, peer in enumerate(peers)},
        by_name=by_name,
    )


def _standing_line(one: Standing, place: int) -> dict[str, Any]:
    return {
        "rank": place,
        "account": one.account,
        "rounds": one.rounds,
        "ranked_rounds": one.ranked_rounds,
        "verified_reward": one.verified_micros,
        "claimed_reward": one.reward_micros,
        "score": one.score_micros,
        "value": one.value // MICROS**2,
        "audits_passed": one.audits_passed,
        "audits_failed": one.audits_failed,
        "eligible": one.is_eligible,
    }


def _newcomer_line(account: str) -> dict[str, Any]:
    """Of a peer of which no round that is over has a report."""
    counts = ("rounds", "ranked_rounds", "verified_reward", "claimed_reward", "score", "value")
    nothing = dict.fromkeys((*counts, "audits_passed", "audits_failed"), 0)
    return {"rank": None, "account": account, "eligible": True, **nothing}


def leaderboard(ranks: Ranks, own: Collection[bytes], offset: int, limit: int) -> schema.Leaderboard:
    """Peers that reported, by rank. `own`: which are marked as the user's; as below."""
    return _page(ranks, own, range(ranks.reported), offset, limit)


def search(ranks: Ranks, own: Collection[bytes], words: str, offset: int, limit: int) -> schema.Leaderboard:
    """All peers whose name, id or account has these words."""
    wanted = words.lower().split()
    found = [place for place, text in enumerate(ranks.words) if all(word in text for word in wanted)]
    return _page(ranks, own, found, offset, limit)


def these(ranks: Ranks, own: Collection[bytes], peers: Iterable[bytes]) -> schema.Leaderboard:
    """Just these peers, by rank."""
    found = sorted(ranks.place[peer] for peer in peers if peer in ranks.place)
    return _page(ranks, own, found, 0, len(found))


def line_of(ranks: Ranks, own: Collection[bytes], peer: bytes) -> schema.Rank:
    """One peer's."""
    row = ranks.rows[ranks.place[peer]]
    return row.model_copy(update={"own": True}) if peer in own else row


def _page(
    ranks: Ranks, own: Collection[bytes], places: Sequence[int], offset: int, limit: int
) -> schema.Leaderboard:
    marked = {ranks.place[peer] for peer in own if peer in ranks.place}
    return schema.Leaderboard.model_construct(
        round=ranks.round,
        total=len(places),
        offset=offset,
        rows=[
            ranks.rows[place].model_copy(update={"own": True}) if place in marked else ranks.rows[place]
            for place in places[offset : offset + limit]
        ],
    )


def reports(
    index: IndexReader, known: Known, found: list[KeptReport], limit: int, *, are_one_peers: bool
) -> list[schema.Report]:
    """The first `limit` reports as they are shown; one more, if there is one, tells what the last follows."""
    shown = found[:limit]
    outcomes = index.outcomes([kept.seq for kept in shown])
    rows = []
    for place, kept in enumerate(shown):
        report, settled = kept.report, outcomes.get(kept.seq)
        before = found[place + 1].report if are_one_peers and place + 1 < len(found) else None
        rows.append(
            schema.Report(
                peer=_named(report.peer)[0],
                round=report.round,
                at=known.starts_at(report.round),
                reward=report.reward_micros,
                groups=report.groups,
                late=report.late,
                ranked=kept.ranked,
                outcome=_outcome(settled) if settled else None,
                commitment=report.commitment.hex(),
                state_before=report.state_before.hex(),
                state_after=report.state_after.hex(),
                follows=before.state_after == report.state_before if before else None,
                tx=report.tx,
                block=report.block_number,
            )
        )
    return rows


def verdicts(found: Iterable[tuple[int, Settled]], next_page: str | None) -> schema.Verdicts:
    """Settled audits as they are shown."""
    return schema.Verdicts(verdicts=[_verdict(settled) for _, settled in found], next=next_page)


def _outcome(settled: Settled) -> OutcomeName:
    return "undecided" if settled.outcome is None else _OUTCOMES[settled.outcome]


def _verdict(settled: Settled) -> schema.Verdict:
    peer, name = _named(settled.peer)
    return schema.Verdict(
        peer=peer,
        name=name,
        round=settled.round,
        settled_in=settled.settled_in,
        outcome=_outcome(settled),
        audit_class=_CLASSES[settled.audit_class],
        faults=[
            schema.Fault(check=_CHECKS[fault.check], count=fault.count, detail=fault.detail)
            for fault in settled.faults
        ],
        planted=settled.was_plant,
        voices=[
            schema.Voice(
                peer=_named(voice.auditor)[0],
                name=_named(voice.auditor)[1],
                outcome=_OUTCOMES[voice.outcome],
                counted=voice.counted,
            )
            for voice in settled.voices
        ],
    )


def peer_page(
    index: IndexReader, known: Known, rank: schema.Rank, peer: bytes, state_file: Path | None
) -> schema.PeerPage:
    """One peer. `state_file`: an own peer's record of itself."""
    with known.reputation() as reputation:
        standing = reputation.standing(peer) if reputation else None
    return schema.PeerPage(
        rank=rank,
        age=standing.age if standing else 0,
        probation_until=standing.probation_until if standing else 0,
        rooted=standing.is_rooted if standing else True,
        state=standing.state.hex() if standing and standing.state else "",
        commitment=standing.commitment.hex() if standing and standing.commitment else "",
        bindings=[
            schema.Binding(block=one.block, account=one.account, peer=_named(one.peer)[0], tx=one.tx)
            for one in index.bindings_of(peer)
        ],
        doing=_doing(state_file) if state_file else "",
    )


def _doing(state_file: Path) -> str:
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(Records(state_file, read_only=True)) as records,
    ):
        status = records.status() if records.exist else None
        if status is not None:
            return status.state if status.round is None else f"{status.state}, round {status.round}"
    return ""


def rounds(index: IndexReader, known: Known, found: list[KeptRound], next_page: int | None) -> schema.Rounds:
    """Rounds as they are shown, newest first."""
    late = index.late_counts(found[-1].number, found[0].number) if found else {}
    return schema.Rounds(
        rounds=[
            schema.Round(
                round=one.number,
                began_at=known.starts_at(one.number),
                beacon=one.first.hash.hex() if one.first.timestamp < known.starts_at(one.number + 1) else "",
                block=one.first.number,
                reports=index.on_time(one.number) if one.reports is None else one.reports,
                late=late.get(one.number, 0),
                mean_reward=one.mean,
                best_reward=one.best,
            )
            for one in found
        ],
        next=next_page,
    )


def curve(found: list[KeptRound], points: int) -> schema.Curve:
    """The rounds that are over, newest first as given, as at most so many points, oldest first."""
    over = [one for one in reversed(found) if one.reports]
    size = -(-len(over) // points) or 1
    chunks = [over[start : start + size] for start in range(0, len(over), size)]
    return schema.Curve(
        rounds_per_point=size,
        points=[
            schema.Point(
                round=chunk[-1].number,
                mean=_weighted([(one.mean, one.reports) for one in chunk]),
                low=_weighted([(one.low, one.reports) for one in chunk]),
                high=_weighted([(one.high, one.reports) for one in chunk]),
                reports=sum(one.reports or 0 for one in chunk),
            )
            for chunk in chunks
        ],
    )


def _weighted(values: list[tuple[int | None, int | None]]) -> int:
    total = sum(count or 0 for _, count in values)
    return sum((value or 0) * (count or 0) for value, count in values) // max(1, total)
