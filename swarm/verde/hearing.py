"""What a report says of others and of the peer's own plants: seals are kept, openings held against them."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.errors import WireError
from swarm.ledger.records import Dated
from swarm.verde import verdicts
from swarm.verde.cases import Auditor
from swarm.verde.standing import Member
from swarm.verde.verdicts import Carried, Opening, PlantOpening

PLANT_OPENED_AFTER = 3  # rounds: when the seals of what is said of it are closed
PLANT_ROUNDS = 20  # in so many rounds one plant is an excuse, a second is a fault
PLANT_PATIENCE = 8  # rounds that a case which looks like a plant waits for its peer, if that is away
# For reporting without opening one's seal: else who sees that it was wrong would not open. As dear as the
# dearest verdict, a plant that was not seen.
UNOPENED_FAILS = 3.0
KEPT_SEALS = PLANT_OPENED_AFTER + PLANT_PATIENCE + 3  # rounds


def hear(member: Member, dated: Dated, number: int, duties: Sequence[Auditor]) -> None:
    """Take in what a report carries, before the report itself.

    `number` is the round that is being entered, `duties` what the peer had to judge that was drawn two rounds
    before the report's.
    """
    round, on_time = dated.report.round, not dated.report.late
    try:
        carried = verdicts.decode(dated.report.verdicts)
    except WireError:
        carried = Carried()
    if on_time and duties:
        _hear_verdicts(member, round, carried.opening, duties)
    if carried.plant is not None and _is_valid(member, round, carried.plant):
        _excuse(member, carried.plant)
    member.seals = {of: sealed for of, sealed in member.seals.items() if of >= number - KEPT_SEALS}
    if carried.seal is not None:
        member.seals[round] = (carried.seal, on_time)


def may_be_opened(member: Member, planted: int) -> bool:
    """Whether the peer, having been away since, may still say that it planted a fault in `planted`."""
    first = planted + PLANT_OPENED_AFTER
    return planted - 1 in member.seals and all(kept.report.round < first for kept in member.reports)


def _hear_verdicts(member: Member, round: int, opening: Opening | None, duties: Sequence[Auditor]) -> None:
    seal, was_on_time = member.seals.get(round - 1, (b"", False))
    if not was_on_time:
        return  # it promised nothing
    if opening is None or not opening.opens(seal):
        member.fails += UNOPENED_FAILS
        return
    duty_of = {(duty.case.peer, duty.case.round): duty for duty in duties}
    for verdict in opening.verdicts:
        duty = duty_of.pop((verdict.peer, verdict.round), None)  # the first counts
        if duty is not None and verdict.is_sound:
            duty.verdict = verdict


def _is_valid(member: Member, round: int, opening: PlantOpening) -> bool:
    """Whether an opening in the report of `round` is an excuse.

    It is if the plant was sealed before its round's report, is opened in the first report that may open it,
    and is the first in `PLANT_ROUNDS`. That report may be late, or of a later round if the peer was away.
    """
    planted = opening.round
    place = {kept.report.round: index for index, kept in enumerate(member.reports)}
    seal, _ = member.seals.get(planted - 1, (b"", False))
    return (
        planted in place
        and place.get(planted - 1, len(place)) < place[planted]
        and round >= planted + PLANT_OPENED_AFTER > max(place)
        and (member.last_plant is None or planted >= member.last_plant + PLANT_ROUNDS)
        and opening.opens(seal)
    )


def _excuse(member: Member, opening: PlantOpening) -> None:
    kept = member.kept(opening.round)
    assert kept is not None
    kept.plant, member.last_plant = opening.plant, opening.round
    member.unrank(kept)
