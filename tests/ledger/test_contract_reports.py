"""Reports: once per round, in time or late, by the account or a relay; their sums, heads and counts."""

import pytest
from contract_cast import (
    MAX_GROUPS,
    MAX_REWARD,
    WINDOW,
    ZERO,
    Account,
    chain,
    create_swarm,
    head_of,
    key,
    make_report,
    twins,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NOTHING = [False, 0, 0, 0]


@pytest.fixture(scope="module")
def accounts():
    return [chain().account() for _ in range(2)]


@pytest.fixture
def swarm(accounts):
    """Key 0 is registered with account 0, key 1 with account 1."""
    swarm = create_swarm()
    for number in range(2):
        swarm.register(key(number), accounts[number])
    return swarm


def test_a_report_in_its_round_is_on_time(swarm, accounts):
    swarm.enter(3)
    receipt = swarm.report(key(0), accounts[0], make_report(3))
    peer = key(0).peer
    assert swarm.read("hasReported", peer, 3)
    assert not swarm.read("hasReported", peer, 2) and not swarm.read("hasReported", key(1).peer, 3)
    assert swarm.read("reportOf", peer, 3) == [True, 1_500_000, 0, receipt["blockNumber"]]
    assert swarm.read("reportOf", peer, 2) == swarm.read("reportOf", key(1).peer, 3) == NOTHING
    assert swarm.read("reporters", 3) == 1


def test_a_report_comes_back_from_the_logs_as_it_was_sent(swarm, accounts):
    report = make_report(0, verdicts=b"\x00\xffverdicts", groups=MAX_GROUPS, reward=MAX_REWARD)
    swarm.report(key(0), accounts[0], report)
    assert swarm.reported() == [(key(0).peer, report, False)]


def test_a_report_within_the_window_is_late_and_after_it_refused(swarm, accounts):
    swarm.enter(WINDOW + 10)
    late = swarm.report(key(0), accounts[0], make_report(10))
    peer = key(0).peer
    assert swarm.read("reportOf", peer, 10) == [True, 1_500_000, WINDOW, late["blockNumber"]]
    swarm.report(key(0), accounts[0], make_report(WINDOW + 9))
    assert swarm.read("reporters", 10) == swarm.read("reporters", WINDOW + 9) == 0
    assert [late for _, _, late in swarm.reported()] == [True, True]
    me, now = accounts[0], WINDOW + 10
    swarm.refused("TooLate", (9, now), me, "report", peer, make_report(9))
    swarm.refused("FutureRound", (now + 1, now), me, "report", peer, make_report(now + 1))
    swarm.refused("FutureRound", (2**64 - 1, now), me, "report", peer, make_report(2**64 - 1))


def test_a_round_is_reported_once(swarm, accounts):
    me, peer = accounts[0], key(0).peer
    swarm.report(key(0), me, make_report(0))
    for again in (make_report(0), make_report(0, reward=1, note=b"another")):
        swarm.refused("AlreadyReported", (peer, 0), me, "report", peer, again)
        swarm.refused("AlreadyReported", (peer, 0), me, "reportBatch", peer, [again])
    swarm.enter(1)
    pair = [make_report(1), make_report(1, note=b"another")]
    swarm.refused("AlreadyReported", (peer, 1), me, "reportBatch", peer, pair)


def test_a_report_of_no_reward_counts_and_is_not_forgotten(swarm, accounts):
    me, peer = accounts[0], key(0).peer
    swarm.report(key(0), me, make_report(0, reward=0, groups=0))
    assert swarm.read("hasReported", peer, 0)
    swarm.refused("AlreadyReported", (peer, 0), me, "report", peer, make_report(0))
    assert swarm.read("peerRecord", peer)[2:6] == (1, 1, 0, 0)


def test_nobody_reports_for_another(swarm, accounts):
    stranger, peer = accounts[1], key(0).peer
    values = (peer, accounts[0].address)
    swarm.refused("NotPeersAccount", values, stranger, "report", peer, make_report(0))
    swarm.refused("NotPeersAccount", values, stranger, "reportBatch", peer, [make_report(0)])
    swarm.refused("NotRegistered", (key(2).peer,), stranger, "report", key(2).peer, make_report(0))
    signature = swarm.report_signature(stranger, peer, [make_report(0)])
    swarm.refused("BadReportSignature", values, stranger, "reportFor", peer, [make_report(0)], signature)


def test_claims_above_the_swarms_caps_are_refused(swarm, accounts):
    me, peer = accounts[0], key(0).peer
    for claim, error in (
        ({"groups": MAX_GROUPS + 1}, ("TooManyGroups", (MAX_GROUPS + 1, MAX_GROUPS))),
        ({"groups": 2**32 - 1}, ("TooManyGroups", (2**32 - 1, MAX_GROUPS))),
        ({"reward": MAX_REWARD + 1}, ("RewardTooHigh", (MAX_REWARD + 1, MAX_REWARD))),
        ({"reward": 2**64 - 1}, ("RewardTooHigh", (2**64 - 1, MAX_REWARD))),
        ({"verdicts": bytes(4097)}, ("VerdictsTooLarge", (4097, 4096))),
    ):
        assert swarm.refusal(me, "report", peer, make_report(0, **claim)) == error
    swarm.report(key(0), me, make_report(0, groups=MAX_GROUPS, reward=MAX_REWARD, verdicts=b"\1" * 4096))


def test_before_genesis_nothing_is_reported(accounts):
    now = chain().time
    swarm = create_swarm(genesis=now + 500)
    swarm.register(key(0), accounts[0])
    name, (genesis, _) = swarm.refusal(accounts[0], "report", key(0).peer, make_report(0))
    assert (name, genesis) == ("BeforeGenesis", now + 500)
    assert not swarm.read("hasReported", key(0).peer, 0)


def test_a_batch_is_all_or_nothing(swarm, accounts):
    me, peer = accounts[0], key(0).peer
    swarm.enter(5)
    reports = [make_report(round, reward=10**round) for round in (3, 1, 5, 4)]
    bad = [*reports, make_report(6)]
    swarm.refused("FutureRound", (6, 5), me, "reportBatch", peer, bad)
    tx = swarm.contract.functions.reportBatch(peer, bad).transact({"from": me.address, "gas": 2_000_000})
    receipt = swarm.chain.web3.eth.wait_for_transaction_receipt(tx, poll_latency=0.005)
    assert receipt["status"] == 0
    assert swarm.reported() == [] and swarm.read("reporterCount") == 0

    swarm.send(me, "reportBatch", peer, reports)
    assert swarm.reported() == [(peer, report, report.round != 5) for report in reports]
    assert swarm.read("peerRecord", peer)[2:] == (4, 1, 10**5, 10**3 + 10 + 10**5 + 10**4, head_of(reports))
    assert [swarm.read("reporters", round) for round in range(6)] == [0, 0, 0, 0, 0, 1]


def test_a_batch_has_1_to_64_reports(accounts):
    swarm = create_swarm(window=64)
    me, peer = accounts[0], key(0).peer
    swarm.register(key(0), me)
    swarm.enter(64)
    reports = [make_report(round) for round in range(65)]
    for batch in ([], reports):
        swarm.refused("BadBatch", (len(batch), 64), me, "reportBatch", peer, batch)
        signature = swarm.report_signature(me, peer, batch)
        swarm.refused("BadBatch", (len(batch), 64), me, "reportFor", peer, batch, signature)
    swarm.send(me, "reportBatch", peer, reports[1:])
    assert swarm.read("peerRecord", peer)[2:4] == (64, 1)


def test_a_relay_submits_what_the_account_signed(swarm, accounts):
    penniless = Account.create()
    relay = accounts[1]
    swarm.register_for(key(2), penniless, relay)
    swarm.enter(2)
    reports = [make_report(1, verdicts=b"one"), make_report(2)]
    signature = swarm.report_signature(penniless, key(2).peer, reports)
    swarm.send(relay, "reportFor", key(2).peer, reports, signature)
    assert swarm.reported() == [(key(2).peer, reports[0], True), (key(2).peer, reports[1], False)]
    assert swarm.read("peerRecord", key(2).peer)[2:4] == (2, 1)
    again = (key(2).peer, 1)
    swarm.refused("AlreadyReported", again, relay, "reportFor", key(2).peer, reports, signature)


def test_a_report_signature_fits_nothing_else(swarm, accounts):
    """No other report, order, part, peer, contract or chain."""
    first, second = twins()
    me, relay = accounts
    for number in range(2):
        first.register(key(number), me)
    reports = [make_report(0), make_report(1)]
    first.enter(1)
    peer = key(0).peer
    signature = first.report_signature(me, peer, reports)
    other_claims = [
        [reports[0]._replace(**{field: value}), reports[1]]
        for field, value in (
            ("round", 1),
            ("groups", 13),
            ("reward_micros", 1),
            ("commitment", bytes(32)),
            ("state_before", bytes(32)),
            ("state_after", bytes(32)),
            ("verdicts", b"x"),
        )
    ]
    for changed in (*other_claims, reports[::-1], reports[:1], [*reports, make_report(2)]):
        values = (peer, me.address)
        first.refused("BadReportSignature", values, relay, "reportFor", peer, changed, signature)
    other_peer = (key(1).peer, me.address)
    first.refused("BadReportSignature", other_peer, relay, "reportFor", key(1).peer, reports, signature)
    for signed in (swarm, second):
        foreign = signed.report_signature(me, peer, reports)
        first.refused("BadReportSignature", (peer, me.address), relay, "reportFor", peer, reports, foreign)
    first.send(relay, "reportFor", peer, reports, signature)


def test_a_signature_of_the_former_account_is_void_after_a_move(swarm, accounts):
    old, new = accounts
    reports = [make_report(0)]
    signature = swarm.report_signature(old, key(0).peer, reports)
    swarm.register(key(0), new)
    values = (key(0).peer, new.address)
    swarm.refused("BadReportSignature", values, old, "reportFor", key(0).peer, reports, signature)


def test_heads_follow_from_the_logs_in_any_way_of_reporting(swarm, accounts):
    me, peer = accounts[0], key(0).peer
    heads = []
    for round in range(1, 5):
        swarm.enter(round)
        swarm.report(key(0), me, make_report(round, verdicts=bytes(round * 40)))
        heads.append(swarm.read("peerRecord", peer)[6])
    swarm.enter(8)
    batch = [make_report(round) for round in (7, 5, 8)]
    swarm.send(accounts[1], "reportFor", peer, batch, swarm.report_signature(me, peer, batch))
    served = [report for _, report, _ in swarm.reported()]
    assert [head_of(served[: n + 1]) for n in range(4)] == heads
    assert swarm.read("peerRecord", peer)[6] == head_of(served)
    without_one = served[:2] + served[3:]
    assert head_of(without_one) != head_of(served)


def test_on_time_reporters_are_counted_per_round(accounts):
    swarm = create_swarm()
    for number in range(3):
        swarm.register(key(number), accounts[0])
    expected = {}
    for round, numbers in ((6, [0]), (7, [0, 1, 2]), (8, [1, 2]), (9, []), (15, [2]), (16, [0, 1])):
        swarm.enter(round)
        for number in numbers:
            swarm.report(key(number), accounts[0], make_report(round))
        expected[round] = len(numbers)
    assert {round: swarm.read("reporters", round) for round in expected} == expected
    swarm.report(key(2), accounts[0], make_report(14))  # late
    assert [swarm.read("reporters", round) for round in (5, 10, 14, 17, 2**64 - 1)] == [0] * 5


def test_records_list_reporters_in_the_order_of_their_first_reports(accounts):
    swarm = create_swarm()
    for number in range(4):
        swarm.register(key(number), accounts[0])
    assert swarm.read("records", 0, 10) == [] and swarm.read("reporterCount") == 0
    for number in (2, 0, 3):
        swarm.report(key(number), accounts[0], make_report(0, reward=number))
    assert swarm.read("reporterCount") == 3
    everyone = [swarm.read("peerRecord", key(number).peer) for number in (2, 0, 3)]
    assert swarm.read("records", 0, 10) == everyone
    assert swarm.read("records", 0, 2) == everyone[:2]
    assert swarm.read("records", 1, 1) == everyone[1:2]
    for offset, size in ((0, 0), (3, 9), (2**256 - 1, 1)):
        assert swarm.read("records", offset, size) == []
    assert swarm.read("records", 1, 2**256 - 1) == everyone[1:]
    registered_only = swarm.read("peerRecord", key(1).peer)
    assert registered_only == (key(1).peer, accounts[0].address, 0, 0, 0, 0, bytes(32))
    assert everyone[0][1] != ZERO


def test_a_page_of_records_has_at_most_256(swarm, accounts):
    """300 reporters, of whom 299 are pretended by writing the length of their list."""
    swarm.report(key(0), accounts[0], make_report(0))
    call, count = swarm.chain.devnet.call, swarm.contract.functions.reporterCount()
    for slot in range(20):
        before = call("eth_getStorageAt", swarm.address, hex(slot), "latest")
        call("anvil_setStorageAt", swarm.address, hex(slot), "0x" + (300).to_bytes(32, "big").hex())
        if count.call() == 300:
            break
        call("anvil_setStorageAt", swarm.address, hex(slot), before)
    assert [len(swarm.read("records", offset, 2**256 - 1)) for offset in (0, 44, 45, 300)] == [
        256,
        256,
        255,
        0,
    ]
    assert swarm.read("records", 0, 1)[0][0] == key(0).peer


@settings(max_examples=15, deadline=None)
@given(
    claims=st.dictionaries(
        st.integers(0, 4096) | st.integers(0, 12) | st.integers(4085, 4096),
        st.integers(0, 2**38 - 1) | st.sampled_from([0, 1, 2**38 - 1]),
        min_size=1,
        max_size=40,
    ).map(lambda claims: list(claims.items()))
)
def test_packed_entries_do_not_touch_each_other(claims):
    """At the extremes that a swarm can allow: the longest window and the highest reward."""
    swarm, me = _widest()
    snapshot = swarm.chain.devnet.call("evm_snapshot")
    try:
        reports = [make_report(round, reward=reward) for round, reward in claims]
        block = swarm.send(me, "reportBatch", key(0).peer, reports)["blockNumber"]
        now = swarm.read("currentRound")
        for round, reward in claims:
            assert swarm.read("reportOf", key(0).peer, round) == [True, reward, now - round, block]
        neighbours = {max(0, round + step) for round, _ in claims for step in (-1, 1)}
        for round in neighbours - dict(claims).keys():
            assert swarm.read("reportOf", key(0).peer, round) == NOTHING
        total = sum(reward for _, reward in claims)
        ranked = dict(claims).get(now, 0)
        expected = (len(claims), int(now in dict(claims)), ranked, total, head_of(reports))
        assert swarm.read("peerRecord", key(0).peer)[2:] == expected
    finally:
        swarm.chain.devnet.call("evm_revert", snapshot)


@settings(max_examples=40, deadline=None)
@given(bit=st.integers(0, 8 * 65 - 1))
def test_a_report_signature_with_any_bit_flipped_is_refused(bit):
    swarm, me = _widest()
    reports = [make_report(4000)]
    signature = swarm.report_signature(me, key(0).peer, reports)
    flipped = (int.from_bytes(signature, "big") ^ (1 << bit)).to_bytes(65, "big")
    call = ("reportFor", key(0).peer, reports, flipped)
    swarm.refused("BadReportSignature", (key(0).peer, me.address), me, *call)


@settings(max_examples=30, deadline=None)
@given(signature=st.binary(max_size=200))
def test_bytes_that_are_no_report_signature_are_refused(signature):
    swarm, me = _widest()
    call = ("reportFor", key(0).peer, [make_report(4000)], signature)
    swarm.refused("BadReportSignature", (key(0).peer, me.address), me, *call)


_cast = []


def _widest():
    """One swarm for all examples, in round 4096; each example leaves it as it was."""
    if not _cast:
        swarm, me = create_swarm(window=4096, max_reward=2**38 - 1), chain().account()
        swarm.register(key(0), me)
        swarm.enter(4096)
        _cast.append((swarm, me))
    return _cast[0]
