"""Writing to the ledger without gas: the peer signs, a relay sends and pays.

A relay is not believed. What it says of the contract is asked of the ledger, "mined" counts once the ledger
says so, and nothing that it sends is ever signed. All it can do is to do nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from identity import Identity, registration_message, rotation_message
from swarm.errors import LedgerError, LedgerUnavailable
from swarm.ledger.account import Carried, address_bytes, wants_binding
from swarm.ledger.client import LedgerClient, Progress
from swarm.ledger.join import check_url
from swarm.ledger.records import Report
from swarm.ledger.refusals import ContractRefusal
from swarm.ledger.relay_wire import (
    MAX_BODY_BYTES,
    Answer,
    Bootnode,
    Problem,
    Registration,
    Reports,
    Request,
    Rotation,
    WireReport,
    contract_call,
)
from swarm.ledger.rpc import LOOPBACK
from swarm.ledger.typed import bootnode_signature, registration_consent, reports_signature

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

CONNECT_SECONDS, REQUEST_SECONDS = 5.0, 15.0
REGISTER_SECONDS = 120.0  # or rotating; ten blocks of the slowest chains in use
FIRST_PAUSE, MAX_PAUSE = 0.05, 1.0  # seconds between looks at the ledger while waiting for it, doubling
ASK_SECONDS = 2.0  # between questions to the relay about one thing
LINE_SECONDS = 3.0  # between lines of progress
DOUBT_SECONDS = 120.0  # a relay that has not delivered by then is not the only one that is asked
BOOTNODE_SIGNED_SECONDS = 3000.0  # the contract takes an announcement for an hour
REMEMBERED_PARCELS = 16
MAX_WORDS = 300


class _Signed(NamedTuple):
    """A request for the relay, and the same as a call of the contract, to ask the ledger about it."""

    body: bytes
    function: Any


@dataclass
class _Parcel:
    """Reports that were signed, and what the relay last said of them."""

    reports: list[Report]
    signed: _Signed
    begun_at: float
    ask_at: float = 0.0
    carried: Carried | None = None


class _RelayRefusal(LedgerError):
    """The relay does not take a request."""

    def __init__(self, words: str, code: str) -> None:
        super().__init__(words)
        self.code = code


class Sponsor:
    """The `Carrier` of a peer whose account has no gas. Used from one thread; asks nothing when it is made.

    Errors name the relay's host only: its URL may hold a token.
    """

    def __init__(
        self, ledger: LedgerClient, relay_url: str, account: LocalAccount, invite: str | None = None
    ) -> None:
        check_url(relay_url, "the relay's URL", "one")
        self._ledger = ledger
        self._account = account
        self._invite = invite
        self._relay = _RelayConnection(relay_url)
        self._parcels: dict[tuple[bytes, str], _Parcel] = {}
        self._bootnode: tuple[tuple[bytes, str, int], float, _Signed] | None = None

    def register(self, identity: Identity, progress: Progress | None = None, *, move: bool = False) -> bool:
        """See `Carrier`. Returns when the ledger has it; `LedgerUnavailable` if not within two minutes."""
        address = str(self._account.address)
        if not wants_binding(self._ledger, identity, address, move=move):
            return False
        chain_id, contract = self._ledger.chain_id, self._ledger.address
        binding = self._ledger.bindings(identity.peer)
        request = Registration(
            chain_id=chain_id,
            contract=contract,
            invite=self._invite,
            account=address,
            modulus=identity.public_key.modulus,
            proof=identity.sign(
                registration_message(chain_id, address_bytes(contract), address_bytes(address), binding)
            ),
            binding=binding,
            consent=registration_consent(self._account, chain_id, contract, identity.peer, binding),
        )
        what = f"the registration of {identity.peer_id}"

        def bound() -> bool:
            return self._ledger.account_of(identity.peer) == address

        try:
            self._see_to("register", request, what, bound, progress)
        except ContractRefusal as refusal:
            if refusal.name == "AlreadyRegistered":
                return False  # an earlier try, whose answer was lost, made it after all
            raise
        return True

    def rotate(self, old: Identity, new: Identity, progress: Progress | None = None) -> None:
        """Hand all that `old` has on this ledger to `new`; done before is success.

        Returns when the ledger has it; `LedgerUnavailable` if not within two minutes.
        """

        def done() -> bool:
            return self._ledger.successor_of(old.peer) == new.peer

        if done():
            return
        chain_id, contract = self._ledger.chain_id, self._ledger.address
        message = rotation_message(chain_id, address_bytes(contract), old.peer, new.peer)
        request = Rotation(
            chain_id=chain_id,
            contract=contract,
            invite=self._invite,
            old_modulus=old.public_key.modulus,
            new_modulus=new.public_key.modulus,
            old_signature=old.sign(message),
            new_signature=new.sign(message),
        )
        try:
            self._see_to("rotate", request, f"the rotation of {old.peer_id} to {new.peer_id}", done, progress)
        except ContractRefusal:
            if not done():  # else an earlier try, whose answer was lost, made it after all
                raise

    def carry(self, peer: bytes, parcel: str, reports: Sequence[Report]) -> Carried:
        """See `Carrier`. One POST and nothing before it: the round may be about to end."""
        known = self._parcels.get((peer, parcel))
        if known is None or known.reports != list(reports):
            known = self._signed(peer, reports)
            self._parcels[peer, parcel] = known
            while len(self._parcels) > REMEMBERED_PARCELS:
                del self._parcels[next(iter(self._parcels))]
        now = time.monotonic()
        if known.carried is not None and now < known.ask_at:
            return known.carried
        what = f"the reports of rounds {[report.round for report in reports]}"
        try:
            if now > known.begun_at + DOUBT_SECONDS:
                self._ledger.rpc.call(
                    known.signed.function, what
                )  # too late by now, or there without its saying so?
            answer = self._post("reports", known.signed, what)
        except LedgerUnavailable:
            raise
        except LedgerError:
            del self._parcels[peer, parcel]
            raise
        known.carried = Carried("mined" if answer.state == "mined" else "sent", answer.tx)
        known.ask_at = time.monotonic() + ASK_SECONDS
        return known.carried

    def follow(self) -> None:
        """See `Carrier`. The relay does it."""

    def announce_bootnode(self, peer: bytes, multiaddr: str) -> None:
        """See `Carrier`. Returns when the relay has promised it."""
        _, expires_at = self._ledger.bootnode_of(peer)
        wanted, now = (peer, multiaddr, expires_at), time.monotonic()
        if (
            self._bootnode is None
            or self._bootnode[0] != wanted
            or now > self._bootnode[1] + BOOTNODE_SIGNED_SECONDS
        ):
            self._bootnode = (wanted, now, self._signed_bootnode(peer, multiaddr))
        try:
            self._post("bootnode", self._bootnode[2], f"the bootnode {multiaddr}")
        except LedgerUnavailable:
            raise
        except LedgerError:
            self._bootnode = None
            raise

    def _signed(self, peer: bytes, reports: Sequence[Report]) -> _Parcel:
        chain_id, contract = self._ledger.chain_id, self._ledger.address
        signature = reports_signature(self._account, chain_id, contract, peer, reports)
        request = Reports(
            chain_id=chain_id,
            contract=contract,
            invite=self._invite,
            peer=peer,
            reports=[msgspec.convert(report, WireReport, from_attributes=True) for report in reports],
            signature=signature,
        )
        return _Parcel(list(reports), self._ready(request), time.monotonic())

    def _signed_bootnode(self, peer: bytes, multiaddr: str) -> _Signed:
        chain_id, contract = self._ledger.chain_id, self._ledger.address
        announced_at = self._ledger.rpc.block(None).timestamp  # our own guess might be ahead of the chain's
        signature = bootnode_signature(self._account, chain_id, contract, peer, multiaddr, announced_at)
        request = Bootnode(
            chain_id=chain_id,
            contract=contract,
            invite=self._invite,
            peer=peer,
            multiaddr=multiaddr,
            announced_at=announced_at,
            signature=signature,
        )
        return self._ready(request)

    def _ready(self, request: Request) -> _Signed:
        return _Signed(msgspec.json.encode(request), contract_call(self._ledger, request))

    def _see_to(
        self, path: str, request: Request, what: str, done: Callable[[], bool], progress: Progress | None
    ) -> None:
        """Ask the relay until it has promised, and return when the ledger says that it is `done`."""
        signed, host = self._ready(request), self._relay.host
        answer: Answer | None = None
        begun = time.monotonic()
        ask_at, line_at, pause, trouble = begun, begun + LINE_SECONDS, FIRST_PAUSE, ""
        while True:
            try:
                if time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + ASK_SECONDS
                    answer = self._post(path, signed, what)
                if answer is not None and done():
                    return
                trouble = ""
            except LedgerUnavailable as error:
                trouble = f" ({error})"
            now = time.monotonic()
            if now > begun + REGISTER_SECONDS:
                though = f", though the relay at {host} says {answer.state!r}" if answer else ""
                raise LedgerUnavailable(
                    f"{what}: not on the ledger after {REGISTER_SECONDS:.0f} s{though}{trouble}"
                )
            if progress is not None and now >= line_at:
                state = f"{answer.state} by the relay at {host}" if answer else "not promised yet"
                tx = f" in {answer.tx}" if answer and answer.tx else ""
                progress(f"{what}: {state}{tx}{trouble}")
                line_at = now + LINE_SECONDS
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    def _post(self, path: str, signed: _Signed, what: str) -> Answer:
        """The relay's answer. If it refuses, the ledger is asked what the contract says of the same call."""
        try:
            return self._relay.post(path, signed.body)
        except _RelayRefusal as refusal:
            unsure = f"the relay at {self._relay.host} says of {what}: {refusal}"
            try:
                self._ledger.rpc.call(signed.function, what)
            except ContractRefusal as own:
                raise own from refusal
            except LedgerUnavailable as error:
                raise LedgerUnavailable(f"{unsure}; {error}") from error
            if refusal.code == "contract":
                raise LedgerUnavailable(f"{unsure}; the ledger would take it") from refusal
            raise LedgerError(f"the relay at {self._relay.host} refused {what}: {refusal}") from refusal


class _RelayConnection:
    """HTTP to a relay, whose answers are hostile input."""

    def __init__(self, url: str) -> None:
        import requests

        self._parts = urlsplit(url)
        host, port = self._parts.hostname, self._parts.port
        self.host = f"{host}:{port}" if port else str(host)
        self._session = requests.Session()
        self._session.trust_env = host not in LOOPBACK  # no proxy reaches this machine's own relay
        self._session.headers.update(
            {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "swarm"}
        )

    def post(self, path: str, body: bytes) -> Answer:
        """`_RelayRefusal` if the relay refuses, `LedgerUnavailable` if it cannot, or answers nonsense."""
        status, contents = self._exchange(self._url(path), body)
        if status in (200, 202):
            try:
                return msgspec.json.decode(contents, type=Answer)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise LedgerUnavailable(f"what answers at {self.host} is not a relay") from error
        try:
            problem = msgspec.json.decode(contents, type=Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if status >= 500 or status in (408, 429):
                raise LedgerUnavailable(f"the relay at {self.host} answered HTTP {status}") from None
            raise LedgerError(
                f"what answers at {self.host} is not a relay (HTTP {status}): is its URL right?"
            ) from None
        words = _words(problem.error)
        if status >= 500 or problem.code == "unavailable":
            raise LedgerUnavailable(f"the relay at {self.host} takes nothing now: {words}")
        raise _RelayRefusal(words, problem.code)

    def _url(self, path: str) -> str:
        parts = self._parts
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{path}", parts.query, ""))

    def _exchange(self, url: str, body: bytes) -> tuple[int, bytes]:
        import requests
        from urllib3.exceptions import HTTPError

        deadline = time.monotonic() + REQUEST_SECONDS
        contents = bytearray()
        try:
            with self._session.post(
                url, data=body, timeout=(CONNECT_SECONDS, REQUEST_SECONDS), stream=True, allow_redirects=False
            ) as response:
                while chunk := response.raw.read1(MAX_BODY_BYTES):
                    contents += chunk
                    if len(contents) > MAX_BODY_BYTES:
                        raise LedgerUnavailable(
                            f"what answers at {self.host} is not a relay: it says too much"
                        )
                    if time.monotonic() > deadline:
                        raise requests.Timeout
                return response.status_code, bytes(contents)
        except requests.Timeout as error:
            raise LedgerUnavailable(f"the relay at {self.host} did not answer in time") from error
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise LedgerUnavailable(
                f"the relay at {self.host} cannot be reached: is its URL right?"
            ) from error


def _words(text: str) -> str:
    """What a relay says, for a message: one line, and nothing that could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_WORDS]
