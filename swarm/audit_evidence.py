"""What an audit needs of others, fetched: the commitment, the blobs that it names, the states' files.

All of it is asked of the audited peer, which has to serve it; what it heard of others, of these as well. What
a commitment names is a stranger's word: sizes are bounded before anything is asked for, and all of it has one
deadline, so that nobody can be busied without end.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from swarm.audit import Case, Facts, StatePaths, States
from swarm.cellmates import groups_limit
from swarm.draw import Draw
from swarm.errors import ExchangeDown, ExchangeError, WireError
from swarm.exchange import wire
from swarm.exchange.peer import MAX_STAGE_BYTES
from swarm.manifest import STAGE_NUMBER, Manifest, Stage
from swarm.policy.plan import Plan
from swarm.round import CROWDED
from swarm.verde import commitment as commitments
from swarm.verde.build import Build
from swarm.verde.commitment import HEAD_BYTES, Commitment
from swarm.verde.state_files import StateFile, StateFiles

_AT_ONCE = 4
RETRY_SECONDS = (0.5, 2.0)
RESERVE_BYTES = 2**30  # of the disk, left alone: else our own states would have to go

T = TypeVar("T")


def most_state_bytes(plan: Plan, build: Build) -> int:
    """The most bytes that half a state of a model can have: AdamW's two moments, in fp32, and names.

    Of a model that the plan does not know, what the largest of the swarm's has.
    """
    known = {model.model: model.parameters for model in plan.considered} | {plan.model: plan.parameters}
    parameters = known.get(build.model) or max(known.values())
    return 2 * 4 * parameters + parameters // 2 + 2**26


class Withheld(Exception):
    """The audited peer does not serve what it must; the message says what, and what happened."""


class NotNow(Exception):
    """The audit cannot be made, and that is nobody's fault but ours: too few bytes left, no libp2p."""


class Source(Protocol):
    """Where blobs come from; `swarm.exchange.service.Exchange` is one."""

    def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None: ...

    def heard(self, round_number: int, stage: int, cell: int) -> list[wire.Heard]: ...


@dataclass
class Fetching:
    """One audit's fetching.

    Args:
        folder: where files go, and nothing else is; emptied by whoever made it.
        seconds: all of it may take.
        budget_bytes: that may be fetched in all.
        most_state_bytes: of half a state of a build's model.
        is_registered: whether a peer is, as far as the ledger is known here.
    """

    source: Source
    manifest: Manifest
    folder: Path
    seconds: float
    budget_bytes: int
    most_state_bytes: Callable[[Build], int] = lambda build: 2**48
    is_registered: Callable[[bytes], bool] = lambda peer: True
    fetched_bytes: int = field(default=0, init=False)

    def fetch(self, facts: Facts) -> Case:
        """Everything for one audit. `Withheld` and `NotNow` are what can go wrong; nothing else."""
        self._deadline = time.monotonic() + self.seconds
        self._names = count()
        blob = self._commitment(facts)
        try:
            claimed = commitments.decode(blob, facts.commitment)
        except WireError as error:
            return _only(facts, blob, str(error))
        opened, wrong = self._opened(claimed)
        if wrong:
            return _only(facts, blob, wrong)
        own = tuple(
            self._own(facts, stage, one.groups, one.blob, one.blob_bytes)
            for stage, one in zip(self.manifest.stages, claimed.published, strict=False)
        )
        known = {hashlib.sha256(data).digest(): data for data in own if data}
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="audit-fetch") as pool:
            heard = tuple(
                tuple(pool.map(partial(self._heard, facts, known), of_stage)) for of_stage in opened
            )
        senders = {one.peer for of_stage in opened for one in of_stage}
        return Case(
            facts=facts,
            commitment=blob,
            own=own,
            heard=heard,
            announced=self._announced(claimed),
            strangers=sum(not self.is_registered(peer) for peer in senders),
            states=self._states(facts, claimed) if claimed.is_kept else None,
        )

    def _commitment(self, facts: Facts) -> bytes:
        head = self._blob(facts.served_by, facts.commitment, HEAD_BYTES, "its commitment")
        try:
            place = commitments.whereabouts(head)
        except WireError as error:
            raise Withheld(str(error)) from error
        return self._blob(facts.served_by, place.blob, place.blob_bytes, "its commitment")

    def _opened(self, claimed: Commitment) -> tuple[list[list[wire.Heard]], str]:
        """The announcements that it heard, by stage; or what about them is as no honest reader has it."""
        stages, opened = self.manifest.stages, list[list[wire.Heard]]()
        if (len(claimed.heard), len(claimed.published)) != (len(stages), len(stages)):
            return [], "it has other stages than the swarm"
        for stage, envelopes in zip(stages, claimed.heard, strict=True):
            try:
                of_stage = [wire.open_envelope(envelope) for envelope in envelopes]
            except WireError as error:
                return [], f"{stage.name}: what it heard was never announced: {error}"
            sizes = [one.announcement.blob_bytes for one in of_stage]
            if len({one.peer for one in of_stage}) < len(of_stage):
                return [], f"{stage.name}: it heard a peer twice"
            if len(of_stage) > CROWDED * self.manifest.cell_size or sum(sizes) > MAX_STAGE_BYTES:
                return [], f"{stage.name}: it heard more than a reader takes"
            if max(sizes, default=0) > groups_limit(self.manifest, stage).max_bytes:
                return [], f"{stage.name}: it heard more of a peer than the stage allows"
            opened.append(of_stage)
        return opened, ""

    def _own(self, facts: Facts, stage: Stage, groups: int, blob: bytes, size_bytes: int) -> bytes:
        if not groups:
            return b""
        if size_bytes > groups_limit(self.manifest, stage).max_bytes:
            raise Withheld(f"its groups of {stage.name} are said to have more bytes than the stage allows")
        return self._blob(facts.served_by, blob, size_bytes, f"its groups of {stage.name}")

    def _heard(self, facts: Facts, known: dict[bytes, bytes], heard: wire.Heard) -> bytes:
        """The blob of one announcement."""
        announced = heard.announcement
        if announced.blob in known:
            return known[announced.blob]
        with contextlib.suppress(Withheld):  # its sender may be gone, so it is not asked twice
            return self._blob(heard.peer, announced.blob, announced.blob_bytes, "it", retry=())
        return self._blob(facts.served_by, announced.blob, announced.blob_bytes, "what it heard of others")

    def _announced(self, claimed: Commitment) -> tuple[bytes, ...]:
        """What the DHT still has of the peer's announcements: they must be of what it committed to."""
        draw = Draw(claimed.swarm, claimed.beacon, claimed.active, self.manifest.cell_size)
        found = []
        for stage in self.manifest.stages:
            place = claimed.round, STAGE_NUMBER[stage.name], draw.cell(claimed.peer)
            with contextlib.suppress(ExchangeError):
                found += [one.envelope for one in self.source.heard(*place) if one.peer == claimed.peer]
        return tuple(found)

    def _states(self, facts: Facts, claimed: Commitment) -> States:
        return States(
            sampled_with=self._state(facts, claimed.build, claimed.sampled_with, optimizer=False),
            before=self._state(facts, claimed.build, claimed.state_before, optimizer=True),
            after=self._state(facts, claimed.build, claimed.state_after, optimizer=True),
        )

    def _state(self, facts: Facts, build: Build, files: StateFiles, *, optimizer: bool) -> StatePaths:
        weights = self._file(facts.served_by, build, files.weights)
        return StatePaths(
            weights=str(weights),
            optimizer=str(self._file(facts.served_by, build, files.optimizer)) if optimizer else None,
        )

    def _file(self, peer: bytes, build: Build, file: StateFile) -> Path:
        path = self.folder / file.blob.hex()
        if not path.exists():
            if file.size_bytes > self.most_state_bytes(build):
                raise Withheld(f"its states are said to have {file.size_bytes / 1e6:,.0f} MB, as none has")
            self._fetch_to(peer, file.blob, file.size_bytes, path, "its states", RETRY_SECONDS)
        return path

    def _blob(
        self,
        peer: bytes,
        digest: bytes,
        size_bytes: int,
        what: str,
        retry: Sequence[float] = RETRY_SECONDS,
    ) -> bytes:
        """Into a file of its own: what audits fetch must not push what we serve out of the store."""
        path = self.folder / f"blob-{next(self._names)}"
        self._fetch_to(peer, digest, size_bytes, path, what, retry)
        data = path.read_bytes()
        path.unlink()
        return data

    def _fetch_to(
        self, peer: bytes, digest: bytes, size_bytes: int, path: Path, what: str, retry: Sequence[float]
    ) -> None:
        if self.fetched_bytes + size_bytes > self.budget_bytes:
            raise NotNow(f"it takes over {self.budget_bytes // 2**20} MiB")
        if shutil.disk_usage(self.folder).free < size_bytes + RESERVE_BYTES:
            raise NotNow("there is too little room on the disk")
        # Again a few times: a peer may know later than we that we are to audit it.
        for pause in (*retry, None):
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Withheld(f"{what} did not come in the {self.seconds:.0f} seconds that there are")
            try:
                self.source.fetch_to(peer, digest, size_bytes, path, left)
            except ExchangeDown as error:
                raise NotNow(str(error)) from error
            except ExchangeError as error:
                if pause is None:
                    raise Withheld(f"{what} cannot be had: {error}") from error
                time.sleep(pause)
            else:
                self.fetched_bytes += size_bytes
                return


def _only(facts: Facts, commitment: bytes, wrong: str) -> Case:
    """A case of which nothing else is worth fetching."""
    return Case(facts=facts, commitment=commitment, wrong=wrong)
