"""What an audit needs of others, fetched: the commitment, the blobs that it names, the states' files.

All of it is asked of the audited peer, which has to serve it; what it heard of others, of these as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from swarm.audit import Case, Facts, StatePaths
from swarm.cellmates import groups_limit
from swarm.errors import ExchangeDown, ExchangeError, WireError
from swarm.exchange import wire
from swarm.manifest import Manifest, Stage
from swarm.policy.plan import Plan
from swarm.verde import commitment as commitments
from swarm.verde.commitment import HEAD_BYTES
from swarm.verde.state_files import StateFile, StateFiles

_AT_ONCE = 4
RETRY_SECONDS = (0.5, 2.0)

T = TypeVar("T")


class Withheld(Exception):
    """The audited peer does not serve what it must; the message says what, and what happened."""


class NotNow(Exception):
    """The audit cannot be made, and that is nobody's fault but ours: too few bytes left, no libp2p."""


def most_state_bytes(plan: Plan) -> int:
    """The most bytes that half a state of the swarm's models can have: AdamW's two moments, in fp32."""
    parameters = max(plan.parameters, *(model.parameters for model in plan.considered), 0)
    return 2 * 4 * parameters + parameters // 2 + 2**26


class Source(Protocol):
    """Where blobs come from; `swarm.exchange.service.Exchange` is one."""

    def fetch(self, peer: bytes, digest: bytes, size_bytes: int, timeout: float) -> bytes: ...

    def fetch_to(self, peer: bytes, digest: bytes, size_bytes: int, path: Path, timeout: float) -> None: ...


@dataclass
class Fetching:
    """One audit's fetching.

    Args:
        folder: where the states' files go; emptied by whoever made it.
        seconds: each fetch may take.
        budget_bytes: that may be fetched in all.
        most_state_bytes: that half a state of the swarm's models can have.
    """

    source: Source
    manifest: Manifest
    folder: Path
    seconds: float
    budget_bytes: int
    most_state_bytes: int = 2**48
    fetched_bytes: int = field(default=0, init=False)

    def fetch(self, facts: Facts) -> Case:
        """Everything for one audit. `Withheld` and `NotNow` are what can go wrong; nothing else."""
        blob = self._commitment(facts)
        try:
            claimed = commitments.decode(blob, facts.commitment)
        except WireError:
            # The check says what is wrong with it.
            nowhere = StatePaths(weights="")
            return Case(
                facts=facts,
                commitment=blob,
                own=(),
                heard=(),
                sampled_with=nowhere,
                state_before=nowhere,
                state_after=nowhere,
            )
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="audit-fetch") as pool:
            own = tuple(
                self._blob(facts.served_by, one.blob, one.blob_bytes, f"its groups of {stage.name}")
                if one.groups
                else b""
                for stage, one in zip(self.manifest.stages, claimed.published, strict=False)
            )
            known = {hashlib.sha256(data).digest(): data for data in own if data}
            heard = tuple(
                tuple(pool.map(partial(self._heard, facts, stage, known), envelopes))
                for stage, envelopes in zip(self.manifest.stages, claimed.heard, strict=False)
            )
        return Case(
            facts=facts,
            commitment=blob,
            own=own,
            heard=heard,
            sampled_with=self._state(facts, claimed.sampled_with, optimizer=False),
            state_before=self._state(facts, claimed.state_before, optimizer=True),
            state_after=self._state(facts, claimed.state_after, optimizer=True),
        )

    def _commitment(self, facts: Facts) -> bytes:
        head = self._blob(facts.served_by, facts.commitment, HEAD_BYTES, "its commitment")
        try:
            place = commitments.whereabouts(head)
        except WireError as error:
            raise Withheld(str(error)) from error
        return self._blob(facts.served_by, place.blob, place.blob_bytes, "its commitment")

    def _heard(self, facts: Facts, stage: Stage, known: dict[bytes, bytes], envelope: bytes) -> bytes:
        """The blob of one announcement; empty if the announcement is none, as the check will say."""
        try:
            heard = wire.open_envelope(envelope)
        except WireError:
            return b""
        announced = heard.announcement
        if announced.blob in known:
            return known[announced.blob]
        if announced.blob_bytes > groups_limit(self.manifest, stage).max_bytes:
            return b""
        with contextlib.suppress(Withheld):  # its sender may be gone, so it is not asked twice
            return self._blob(heard.peer, announced.blob, announced.blob_bytes, "it", retry=())
        return self._blob(facts.served_by, announced.blob, announced.blob_bytes, "what it heard of others")

    def _state(self, facts: Facts, files: StateFiles, *, optimizer: bool) -> StatePaths:
        weights = self._file(facts.served_by, files.weights)
        return StatePaths(
            weights=str(weights),
            optimizer=str(self._file(facts.served_by, files.optimizer)) if optimizer else None,
        )

    def _file(self, peer: bytes, file: StateFile) -> Path:
        path = self.folder / file.blob.hex()
        if not path.exists():
            if file.size_bytes > self.most_state_bytes:  # or who claims to be huge would never be audited
                raise Withheld(f"its states are said to have {file.size_bytes / 1e6:,.0f} MB, as none has")
            self._spend(file.size_bytes)
            fetch_to = self.source.fetch_to
            _asked(lambda: fetch_to(peer, file.blob, file.size_bytes, path, self.seconds), "its states")
        return path

    def _blob(
        self,
        peer: bytes,
        digest: bytes,
        size_bytes: int,
        what: str,
        retry: Sequence[float] = RETRY_SECONDS,
    ) -> bytes:
        self._spend(size_bytes)
        return _asked(lambda: self.source.fetch(peer, digest, size_bytes, self.seconds), what, retry)

    def _spend(self, size_bytes: int) -> None:
        self.fetched_bytes += size_bytes
        if self.fetched_bytes > self.budget_bytes:
            raise NotNow(f"it takes over {self.budget_bytes // 2**20} MiB")


def _asked(fetch: Callable[[], T], what: str, retry: Sequence[float] = RETRY_SECONDS) -> T:
    """What a peer serves, asked for again a few times: it may know later than we that we are to audit it."""
    for pause in (*retry, None):
        try:
            return fetch()
        except ExchangeDown as error:
            raise NotNow(str(error)) from error
        except ExchangeError as error:
            if pause is None:
                raise Withheld(f"{what} cannot be had: {error}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")
