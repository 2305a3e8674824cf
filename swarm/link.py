"""A node's connection to its swarm's ledger. Once it is open, a round never waits for the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from identity import Identity
from swarm.errors import LedgerError, LedgerUnavailable, UsageError, WrongLedger
from swarm.ledger.account import Carrier, LedgerAccount
from swarm.ledger.client import LedgerClient
from swarm.ledger.deliveries import Deliveries
from swarm.ledger.facts import FACTS_FILE, Facts, read_facts, save_facts
from swarm.ledger.follower import NO_BLOCK, Follower, Seen
from swarm.ledger.join import JoinLine, parse_join_line
from swarm.ledger.outbox import Outbox
from swarm.ledger.records import Report
from swarm.manifest import load
from swarm.settings import Settings, machine_dir

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

log = logging.getLogger("swarm.ledger")

BOOTNODES_WANTED = 8  # announce ourselves while fewer than this are listed
RENEW_SECONDS = 2 * 24 * 3600  # before an announcement expires
SENT_POLL_SECONDS = 0.1  # between looks at whether a report is in a block
JOIN_LINE_FILE = "join-line"
LISTING_SECONDS = 60  # between looks at whether we are listed


class Link:
    """The ledger's time, beacons and bootnodes for a node, and the way for its reports.

    Opening asks the ledger once; if it is away and the swarm is known from before, it opens without it.
    """

    def __init__(
        self,
        settings: Settings,
        join_line: str,
        identity: Identity,
        wallet: LocalAccount,
        is_alone: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._wallet = wallet
        self._is_alone = is_alone
        self._stack = ExitStack()
        self._line = parse_join_line(join_line)
        self._known_before = saved_facts(settings, self._line.address) is not None
        self._ledger, self.online = _find(settings, self._line)
        self.manifest = self._ledger.manifest()
        self.genesis = self._ledger.genesis
        self.address = self._ledger.address
        self.folder = settings.swarm_dir(self.manifest.swarm_id, self.address, self.genesis)
        self._deliveries = Deliveries(self.folder / "outbox.sqlite")
        self._multiaddr: str | None = None
        self._next_listing = 0.0
        if self.online:
            save_facts(self._ledger.facts, self.folder / FACTS_FILE)
            _save_join_line(self.folder, join_line)
            self.online = self._reads_the_clock()
        if not self.online:
            self._ledger.assume_time(time.time())
        self._asking = self._ledger.another()  # for the node's own thread; the follower has the other
        self._follower = Follower(self._ledger)

    def _reads_the_clock(self) -> bool:
        try:
            self._ledger.now()
        except LedgerError as error:
            if not self._known_before:
                raise
            log.warning("ledger slow, starting with this machine's clock error=%r", str(error))
            return False
        return True

    def start(self) -> None:
        """Register if need be, then watch the ledger and send what waits, in the background."""
        writing = self._ledger.another()
        writing.assume_time(self.now())
        self._carrier = _carrier(writing, self._settings, self._line, self._wallet)
        if self.online:
            self._register()
        # The outbox's thread has the writing client from here on, the follower's the reading one.
        self._outbox = Outbox(
            self._deliveries,
            writing,
            self._carrier,
            self._identity,
            self.now,
            self.manifest.acceptance_window,
            chores=[self._keep_listed],
        )
        self._follower.start()
        self._stack.callback(self._follower.stop)
        self._stack.enter_context(self._outbox)

    def _register(self) -> None:
        try:
            if self._carrier.register(self._identity, lambda what: log.info("waiting what=%r", what)):
                log.info("registered peer=%s account=%s", self._identity.peer_id, self._wallet.address)
        except LedgerUnavailable as error:
            if not self._known_before:
                raise
            log.warning("not registered yet, the outbox tries again error=%r", str(error))

    def stop(self) -> None:
        """Stop what `start` started; what is not sent goes out after the next start."""
        self._stack.close()

    def another_ledger(self) -> LedgerClient:
        """A client of the swarm's ledger for another thread."""
        return self._ledger.another()

    @property
    def rpc_url(self) -> str:
        """Where the ledger is asked."""
        return self._line.rpc_url

    @property
    def scope(self) -> str:
        """Where a round has one announcement of each stage, in the words of the journal.

        Announcements name no contract: the same manifest and genesis elsewhere is the same scope.
        """
        return f"{self.manifest.swarm_id.hex()}/{self.genesis}"

    @property
    def report_scope(self) -> str:
        """Where a round has one report."""
        return f"{self.scope}@{self.address}"

    def now(self) -> float:
        """The ledger's time in Unix seconds, as far as it is known."""
        return self._follower.now()

    def await_round(self, number: int, until: float) -> Seen | None:
        """A round's beacon and active count; None if the ledger shows none until then (Unix seconds)."""
        return self._follower.await_round(number, until)

    def registered(self, peer: bytes) -> bool | None:
        """Whether a peer was registered when the ledger was read last; None before. For any thread.

        See `Registry.registered`: who is unknown has the ledger read again.
        """
        return self._follower.registry.registered(peer)

    @property
    def trouble(self) -> str:
        """Why there is no beacon."""
        return self._follower.trouble

    @property
    def is_away(self) -> bool:
        """Whether the ledger did not answer when it was asked last."""
        return self._follower.trouble != NO_BLOCK

    def report(self, *reports: Report) -> None:
        """Hand reports over; from here on no crash can lose them. The first one of a round stays.

        `LedgerError` if they cannot be written down.
        """
        self._outbox.put(*reports)

    def state_before(self, number: int, patience: float) -> bytes | None:
        """The digest of our last state that was on the ledger before round `number` began; None if none was.

        The last round's report, if it was sent and not seen in a block yet, is waited for, at most `patience`
        seconds.
        """
        give_up = time.monotonic() + patience
        self._outbox.wake()
        while time.monotonic() < give_up and any(
            delivery.round == number - 1 and delivery.state == "sent" for delivery in self._deliveries.open()
        ):
            time.sleep(SENT_POLL_SECONDS)
        delivery = self._deliveries.mined_before(number)
        return delivery.report.state_after if delivery else None

    def drain(self, seconds: float) -> int:
        """Wait until all reports are on the ledger, at most so long; how many are still open."""
        return self._outbox.drain(seconds)

    def bootnodes(self) -> list[str]:
        """Other peers that the ledger lists; while we are alone, it is read again at every look."""
        self._follower.lonely = self._is_alone()
        own = f"/p2p/{self._identity.peer_id}"
        return [address for address in self._follower.bootnodes() if not address.endswith(own)]

    def be_listed(self, multiaddr: str | None) -> None:
        """See to it that newcomers find us there, or enough others; None while nobody could reach us."""
        self._multiaddr = multiaddr
        self._outbox.wake()

    @property
    def contradicted(self) -> bool:
        """Whether the ledger has a report of ours that is not the one we sent: a copy of our key runs."""
        return self._outbox.contradicted

    def reported_since(self, first: int) -> bool | None:
        """Whether the ledger has a report of ours for round `first` or a later one; None if it is away.

        The one thing here that waits for its answer. Of rounds that are over for longer than a report may be
        late, it says only whether there is any at all.
        """
        peer = self._identity.peer
        try:
            if self._asking.peer_record(peer).rounds == 0:
                return False
            current = int((self.now() - self.genesis) // self.manifest.round_seconds)
            oldest = max(first, current - self.manifest.acceptance_window)
            return first == 0 or any(
                self._asking.entry(peer, number) is not None for number in range(oldest, current + 1)
            )
        except LedgerError:
            return None

    def _keep_listed(self) -> None:
        """A chore of the outbox: announce ourselves where newcomers find few others; renew it in time."""
        if self._multiaddr is None or time.monotonic() < self._next_listing:
            return
        self._next_listing = time.monotonic() + LISTING_SECONDS
        try:
            self._list()
        except LedgerError as error:
            log.warning("bootnode not announced error=%r", str(error))

    def _list(self) -> None:
        assert self._multiaddr is not None
        ledger = self._outbox.ledger
        listed, expires_at = ledger.bootnode_of(self._identity.peer)
        current = listed == self._multiaddr and expires_at > ledger.now() + RENEW_SECONDS
        others = [address for address in ledger.bootnodes() if address != listed]
        if not current and (len(others) < BOOTNODES_WANTED or self._is_alone()):
            self._carrier.announce_bootnode(self._identity.peer, self._multiaddr)


def _find(settings: Settings, line: JoinLine) -> tuple[LedgerClient, bool]:
    """The swarm's client, and whether the ledger answered; if not, it knows what an earlier start kept."""
    given = load(settings.manifest_path) if settings.manifest_path else None
    known = saved_facts(settings, line.address)
    client = LedgerClient(line.rpc_url, line.address)
    try:
        client.check()
        if known and (client.genesis, client.swarm_id) == (known.genesis, known.swarm_id):
            client = LedgerClient(line.rpc_url, line.address, known)
            client.check_chain()
        else:
            client.find_facts(given)
        return client, True
    except WrongLedger:
        raise
    except LedgerError as error:
        if known is None:
            raise
        log.warning("ledger away, starting from what is known error=%r", str(error))
        return LedgerClient(line.rpc_url, line.address, known), False


def carrier_for(settings: Settings, join_line: str, wallet: LocalAccount) -> Carrier:
    """What gets this wallet's peers' writing on a swarm's ledger, for commands that do one thing."""
    line = parse_join_line(join_line)
    ledger, online = _find(settings, line)
    if not online:
        raise LedgerUnavailable(f"the ledger at {ledger.host} does not answer: try again when it does")
    ledger.now()
    return _carrier(ledger, settings, line, wallet)


def _carrier(ledger: LedgerClient, settings: Settings, line: JoinLine, wallet: LocalAccount) -> Carrier:
    relay_url = settings.relay_url or line.relay_url
    if relay_url is None:
        return LedgerAccount(ledger, wallet, machine_dir())
    from swarm.ledger.sponsor import Sponsor  # its libraries are not needed otherwise

    return Sponsor(ledger, relay_url, wallet, settings.invite)


def last_join_line(settings: Settings, how: str) -> str:
    """The line of the swarm that was joined last from this home; `UsageError` if there was none."""
    files = sorted(settings.swarms_dir.glob(f"*/{JOIN_LINE_FILE}"), key=lambda file: -file.stat().st_mtime)
    for file in files:
        with suppress(OSError, UnicodeDecodeError):
            return file.read_text().strip()
    raise UsageError(f"which swarm? nobody joined one from here: name it with {how}")


def _save_join_line(folder: Path, join_line: str) -> None:
    """Only a convenience, for `swarm audit`. The URL may hold somebody's API key."""
    path = folder / JOIN_LINE_FILE
    with suppress(OSError):
        path.touch(mode=0o600)
        path.write_text(join_line)


def saved_facts(settings: Settings, address: str) -> Facts | None:
    """What an earlier start found out about the swarm at an address; the latest, if several were there."""
    files = sorted(settings.swarms_dir.glob(f"*/{FACTS_FILE}"), key=lambda file: -file.stat().st_mtime)
    found = (facts for file in files if (facts := read_facts(file)) and facts.address == address)
    return next(found, None)
