"""Random histories of a whole swarm, compared step by step with a model of a page."""

from collections import Counter
from dataclasses import dataclass, field

from contract_cast import (
    MAX_GROUPS,
    MAX_REWARD,
    ROUND_SECONDS,
    WEEK,
    WINDOW,
    ZERO,
    Report,
    chain,
    create_swarm,
    head_of,
    key,
    make_report,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

KEYS = range(5)
ACCOUNTS = range(3)
MIDDLE = ROUND_SECONDS // 2  # far from a round's ends, beside the second that a transaction takes

keys = st.sampled_from(KEYS)
accounts = st.sampled_from(ACCOUNTS)
choices = st.sampled_from(range(60))  # which key, mostly a registered one: see `chosen`
mostly = st.sampled_from([True, True, True, True, False])
claims = st.tuples(
    # How many rounds after its round, negative for one to come.
    st.sampled_from([0] * 6 + [1, 2, 3, 4, 5, 6, WINDOW - 1, WINDOW] * 2 + [WINDOW + 1, -1]),
    st.sampled_from([0, 1, 70_000, 1_500_000, MAX_REWARD] * 6 + [MAX_REWARD + 1]),
    st.sampled_from([0, 12, MAX_GROUPS] * 10 + [MAX_GROUPS + 1]),
    st.binary(max_size=40),
)


@dataclass
class Peer:
    """One key of the model."""

    account: int | None = None
    bindings: int = 0
    successor: int | None = None
    reports: list[tuple[Report, bool]] = field(default_factory=list)  # with lateness; moves on with rotations


class Histories(RuleBasedStateMachine):
    """The rules try what is allowed and what is not; the model says which it is, and how it is refused."""

    cast = None

    def __init__(self):
        super().__init__()
        if Histories.cast is None:
            on = chain(4242)  # its own, since it is set back after each history
            Histories.cast = (create_swarm(on), [on.account() for _ in ACCOUNTS], on.account())
        self.swarm, self.accounts, self.relay = Histories.cast
        self.devnet = self.swarm.chain.devnet
        self.snapshot = self.devnet.call("evm_snapshot")
        self.peers = {number: Peer() for number in KEYS}
        self.order = []  # of those that ever reported
        self.logs = []
        self.bootnodes = {}  # key: (multiaddr, expiry), oldest first
        self.round = 2 * WINDOW
        self.swarm.enter(self.round, MIDDLE)
        self.first_block = self.swarm.chain.web3.eth.block_number

    def teardown(self):
        try:
            self.check_rounds_count_their_reporters_in_time()
        finally:
            self.devnet.call("evm_revert", self.snapshot)

    # ---- rules ----

    @initialize()
    def begin_with_three_peers_of_two_accounts(self):
        for number, who in ((0, 0), (1, 0), (2, 1)):
            self.register(number, who)

    @rule(number=keys, who=accounts)
    def register(self, number, who):
        arguments = (key(number).public_key.modulus, self.swarm.proof(key(number), self.accounts[who]))
        if self.attempt(self.why_not_bind(number, who), self.accounts[who], "register", *arguments):
            self.bind(number, who)

    @rule(number=keys, who=accounts, signer=accounts)
    def register_for(self, number, who, signer):
        account = self.accounts[who]
        signatures = (
            self.swarm.proof(key(number), account),
            self.swarm.consent(key(number), self.accounts[signer]),
        )
        error = self.why_not_bind(number, who) or ("BadConsent" if signer != who else None)
        arguments = (account.address, key(number).public_key.modulus, *signatures)
        if self.attempt(error, self.relay, "registerFor", *arguments):
            self.bind(number, who)

    @rule(number=keys, who=accounts, binding=st.integers(0, 3))
    def register_with_a_proof_of_some_time(self, number, who, binding):
        proof = self.swarm.proof(key(number), self.accounts[who], binding)
        error = self.why_not_bind(number, who)
        error = error or (None if binding == self.peers[number].bindings else "BadProof")
        arguments = (key(number).public_key.modulus, proof)
        if self.attempt(error, self.accounts[who], "register", *arguments):
            self.bind(number, who)

    @rule(choice=choices, new=keys, honest=mostly)
    def rotate(self, choice, new, honest):
        old = self.chosen(choice)
        arguments = list(self.swarm.rotation(key(old), key(new)))
        if not honest:
            arguments[3] = arguments[2]
        error = self.why_not_known(old)
        error = error or ("PeerTaken" if self.peers[new].bindings else None if honest else "BadRotation")
        if not self.attempt(error, self.relay, "rotate", *arguments):
            return
        before = self.peers[old]
        self.peers[new] = Peer(before.account, 1, None, before.reports)
        self.peers[old] = Peer(None, before.bindings, new)
        self.order = [new if number == old else number for number in self.order]
        self.bootnodes.pop(old, None)
        self.check_peers_belong_to_whom_the_model_says()

    @rule(choice=choices, right=mostly, claim=claims)
    def report(self, choice, right, claim):
        number, who = self.chosen_speaker(choice, right)
        report = self.claimed(claim)
        error = self.why_not_speak(number, who) or self.why_not_report(number, [report])
        if self.attempt(error, self.accounts[who], "report", key(number).peer, report):
            self.enter_reports(number, [report])

    @rule(choice=choices, right=mostly, several=st.lists(claims, max_size=5))
    def report_batch(self, choice, right, several):
        number, who = self.chosen_speaker(choice, right)
        reports = [self.claimed(claim) for claim in several]
        error = self.why_not_speak(number, who) or self.why_not_report(number, reports)
        if self.attempt(error, self.accounts[who], "reportBatch", key(number).peer, reports):
            self.enter_reports(number, reports)

    @rule(choice=choices, right=mostly, several=st.lists(claims, max_size=3))
    def report_for(self, choice, right, several):
        number, who = self.chosen_speaker(choice, right)
        reports = [self.claimed(claim) for claim in several]
        signature = self.swarm.report_signature(self.accounts[who], key(number).peer, reports)
        error = self.why_not_known(number) or (None if reports else "BadBatch")
        error = error or ("BadReportSignature" if self.peers[number].account != who else None)
        error = error or self.why_not_report(number, reports)
        if self.attempt(error, self.relay, "reportFor", key(number).peer, reports, signature):
            self.enter_reports(number, reports)
            self.refuses("AlreadyReported", self.relay, "reportFor", key(number).peer, reports, signature)

    @rule(choice=choices, right=mostly, multiaddr=st.sampled_from(["/a", "/b/" + "x" * 40, "/c", "d"]))
    def announce(self, choice, right, multiaddr):
        number, who = self.chosen_speaker(choice, right)
        error = self.why_not_speak(number, who) or (None if multiaddr[0] == "/" else "BadMultiaddr")
        if self.attempt(error, self.accounts[who], "announceBootnode", key(number).peer, multiaddr):
            self.bootnodes.pop(number, None)
            self.bootnodes[number] = (multiaddr, self.swarm.chain.time + WEEK)

    @rule(rounds=st.sampled_from([1, 1, 1, 2, 3, WINDOW, WEEK // ROUND_SECONDS // 2]))
    def wait(self, rounds):
        self.round += rounds
        self.swarm.enter(self.round, MIDDLE)

    # ---- the model ----

    def chosen(self, choice):
        pool = [number for number in KEYS if self.peers[number].account is not None] * 4 + list(KEYS)
        return pool[choice % len(pool)]

    def chosen_speaker(self, choice, right):
        """A key, and its account or another one."""
        number = self.chosen(choice)
        account = self.peers[number].account or 0
        return number, account if right else (account + 1) % len(ACCOUNTS)

    def why_not_bind(self, number, who):
        peer = self.peers[number]
        if peer.successor is not None:
            return "Retired"
        return "AlreadyRegistered" if peer.account == who else None

    def why_not_known(self, number):
        peer = self.peers[number]
        if peer.successor is not None:
            return "Retired"
        return "NotRegistered" if peer.account is None else None

    def why_not_speak(self, number, who):
        error = self.why_not_known(number)
        return error or ("NotPeersAccount" if self.peers[number].account != who else None)

    def why_not_report(self, number, reports):
        if not reports:
            return "BadBatch"
        done = {report.round for report, _ in self.peers[number].reports}
        for report in reports:
            checks = (
                ("FutureRound", report.round > self.round),
                ("TooLate", self.round - report.round > WINDOW),
                ("TooManyGroups", report.groups > MAX_GROUPS),
                ("RewardTooHigh", report.reward_micros > MAX_REWARD),
                ("AlreadyReported", report.round in done),
            )
            for error, applies in checks:
                if applies:
                    return error
            done.add(report.round)
        return None

    def claimed(self, claim):
        lateness, reward, groups, verdicts = claim
        return make_report(self.round - lateness, reward=reward, groups=groups, verdicts=verdicts)

    def bind(self, number, who):
        self.peers[number].account = who
        self.peers[number].bindings += 1
        self.check_peers_belong_to_whom_the_model_says()

    def enter_reports(self, number, reports):
        if number not in self.order:
            self.order.append(number)
        for report in reports:
            self.peers[number].reports.append((report, report.round != self.round))
            self.logs.append((key(number).peer, report, report.round != self.round))

    def attempt(self, error, sender, name, *arguments):
        """Whether the step was done; it is refused if and only if the model says so, and for that reason."""
        if error is None:
            self.swarm.send(sender, name, *arguments)
            return True
        self.refuses(error, sender, name, *arguments)
        return False

    def refuses(self, error, sender, name, *arguments):
        assert self.swarm.refusal(sender, name, *arguments)[0] == error

    def record(self, number):
        peer = self.peers[number]
        ranked = [report for report, late in peer.reports if not late]
        everything = [report for report, _ in peer.reports]
        account = ZERO if peer.account is None else self.accounts[peer.account].address
        sums = [sum(report.reward_micros for report in some) for some in (ranked, everything)]
        return (key(number).peer, account, len(everything), len(ranked), *sums, head_of(everything))

    # ---- invariants ----

    @invariant()
    def records_are_the_sums_of_the_reports_of_exactly_the_reporters(self):
        assert self.swarm.read("records", 0, 256) == [self.record(number) for number in self.order]
        assert self.swarm.read("reporterCount") == len(self.order)

    @invariant()
    def the_logs_are_what_was_reported_and_no_round_twice(self):
        logs = self.swarm.reported(self.first_block)
        assert logs == self.logs
        for number in self.order:
            rounds = [report.round for report, _ in self.peers[number].reports]
            assert len(rounds) == len(set(rounds))

    @invariant()
    def only_the_blocks_time_moves_the_round(self):
        assert self.swarm.read("currentRound") == self.round
        assert (self.swarm.chain.time - self.swarm.genesis) // ROUND_SECONDS == self.round

    @invariant()
    def bootnodes_are_newest_first_and_not_expired(self):
        now = self.swarm.chain.time
        listed = [multiaddr for multiaddr, expiry in reversed(self.bootnodes.values()) if now < expiry]
        assert self.swarm.read("bootnodes", 256) == listed

    # ---- what would take too long after each step ----

    def check_peers_belong_to_whom_the_model_says(self):
        for who in ACCOUNTS:
            expected = sorted(key(number).peer for number in KEYS if self.peers[number].account == who)
            assert sorted(self.swarm.read("peersOf", self.accounts[who].address)) == expected
        for number, peer in self.peers.items():
            successor = bytes(32) if peer.successor is None else key(peer.successor).peer
            assert self.swarm.read("successorOf", key(number).peer) == successor
            assert self.swarm.read("bindings", key(number).peer) == peer.bindings

    def check_rounds_count_their_reporters_in_time(self):
        in_time = Counter(report.round for _, report, late in self.logs if not late)
        for round in {self.round, *(report.round for _, report, _ in self.logs)}:
            assert self.swarm.read("reporters", round) == in_time[round]


Histories.TestCase.settings = settings(
    max_examples=14,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestHistories = Histories.TestCase
