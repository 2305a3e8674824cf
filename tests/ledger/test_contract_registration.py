"""Who may bind a peer to an account, move it, and hand it to a new key."""

import pytest
from contract_cast import ZERO, Account, chain, create_swarm, key, make_report, next_head, twins

EMPTY = bytes(32)


@pytest.fixture
def swarm():
    return create_swarm()


@pytest.fixture(scope="module")
def accounts():
    return [chain().account() for _ in range(3)]


def registered_logs(swarm):
    logs = swarm.contract.events.Registered.get_logs(from_block=0)
    return [(log["args"]["peer"], log["args"]["account"]) for log in logs]


def test_the_peer_is_computed_from_its_key(swarm, accounts):
    swarm.register(key(0), accounts[0])
    peer = key(0).peer
    assert swarm.read("accountOf", peer) == accounts[0].address
    assert swarm.read("isRegistered", peer)
    assert swarm.read("bindings", peer) == 1
    assert swarm.read("peersOf", accounts[0].address) == [peer]
    assert registered_logs(swarm) == [(peer, accounts[0].address)]


def test_an_unknown_peer_reads_as_nothing(swarm):
    peer = key(0).peer
    assert swarm.read("accountOf", peer) == ZERO
    assert not swarm.read("isRegistered", peer)
    assert swarm.read("bindings", peer) == 0
    assert swarm.read("successorOf", peer) == EMPTY
    assert swarm.read("peerRecord", peer) == (peer, ZERO, 0, 0, 0, 0, EMPTY)


def test_the_published_messages_are_what_is_signed(swarm, accounts):
    from contract_cast import registration_message, rotation_message

    who = accounts[0].address
    for binding in (0, 1):
        message = registration_message(swarm.chain.id, swarm.address, who, binding)
        assert swarm.read("registrationMessage", key(0).peer, who) == message
        if binding == 0:
            swarm.register(key(0), accounts[1])
    message = rotation_message(swarm.chain.id, swarm.address, key(0).peer, key(1).peer)
    assert swarm.read("rotationMessage", key(0).peer, key(1).peer) == message


def test_registering_again_with_the_same_account_is_refused(swarm, accounts):
    swarm.register(key(0), accounts[0])
    swarm.refused(
        "AlreadyRegistered",
        (key(0).peer, accounts[0].address),
        accounts[0],
        "register",
        key(0).public_key.modulus,
        swarm.proof(key(0), accounts[0]),
    )


def test_anyone_may_submit_for_an_account_that_agrees(swarm, accounts):
    penniless = Account.create()
    swarm.register_for(key(0), penniless, accounts[0])
    assert swarm.read("accountOf", key(0).peer) == penniless.address
    assert swarm.read("peersOf", accounts[0].address) == []


def test_nobody_is_given_a_peer_without_his_consent(swarm, accounts):
    victim, attacker = accounts[:2]
    arguments = (victim.address, key(0).public_key.modulus, swarm.proof(key(0), victim))
    for consent in (
        swarm.consent(key(0), attacker),
        swarm.consent(key(1), victim),
        swarm.consent(key(0), victim, binding=1),
        b"",
        bytes(65),
    ):
        swarm.refused(
            "BadConsent", (key(0).peer, victim.address), attacker, "registerFor", *arguments, consent
        )


def test_nobody_gives_a_peer_to_the_zero_account(swarm, accounts):
    nobody = type("Nobody", (), {"address": ZERO})
    modulus, proof = key(0).public_key.modulus, swarm.proof(key(0), nobody)
    swarm.refused(
        "BadConsent", (key(0).peer, ZERO), accounts[0], "registerFor", ZERO, modulus, proof, bytes(65)
    )


def test_the_consent_of_an_account_does_not_replace_the_keys_proof(swarm, accounts):
    modulus, consent = key(0).public_key.modulus, swarm.consent(key(0), accounts[0])
    for proof in (swarm.proof(key(1), accounts[0]), swarm.proof(key(0), accounts[1]), b""):
        values = (key(0).peer, accounts[0].address)
        call = ("registerFor", accounts[0].address, modulus, proof, consent)
        swarm.refused("BadProof", values, accounts[0], *call)


def test_a_proof_fits_no_other_account_contract_chain_or_binding(swarm, accounts):
    first, second = twins()
    me, other = accounts[:2]
    second.chain.devnet.call("anvil_setBalance", me.address, hex(10**22))
    modulus = key(0).public_key.modulus
    for proof in (
        first.proof(key(0), other),
        swarm.proof(key(0), me),  # another contract on the same chain
        second.proof(key(0), me),  # the same address on another chain
        first.proof(key(0), me, binding=1),
    ):
        first.refused("BadProof", (key(0).peer, me.address), me, "register", modulus, proof)
    first.register(key(0), me)


def test_a_consent_fits_no_other_contract_or_chain(swarm, accounts):
    first, second = twins()
    me = accounts[0]
    arguments = (me.address, key(0).public_key.modulus, first.proof(key(0), me))
    for consent in (swarm.consent(key(0), me), second.consent(key(0), me)):
        values = (key(0).peer, me.address)
        first.refused("BadConsent", values, accounts[1], "registerFor", *arguments, consent)
    first.register_for(key(0), me, accounts[1])


def test_the_key_moves_its_peer_to_another_account_with_all_it_has(swarm, accounts):
    old, new = accounts[:2]
    swarm.register(key(0), old)
    report = make_report(0)
    swarm.report(key(0), old, report)
    swarm.register(key(0), new)
    peer = key(0).peer
    assert swarm.read("accountOf", peer) == new.address
    assert swarm.read("bindings", peer) == 2
    assert swarm.read("peersOf", old.address) == []
    assert swarm.read("peersOf", new.address) == [peer]
    assert swarm.read("peerRecord", peer)[1:5] == (new.address, 1, 1, report.reward_micros)
    assert registered_logs(swarm) == [(peer, old.address), (peer, new.address)]
    swarm.enter(1)
    swarm.refused("NotPeersAccount", (peer, new.address), old, "report", peer, make_report(1))
    swarm.refused("AlreadyReported", (peer, 0), new, "report", peer, make_report(0, note=b"again"))
    swarm.report(key(0), new, make_report(1))


def test_an_old_proof_or_consent_cannot_undo_a_move(swarm, accounts):
    stolen, safe, relay = accounts
    proof, consent = swarm.proof(key(0), stolen), swarm.consent(key(0), stolen)
    modulus = key(0).public_key.modulus
    swarm.send(relay, "registerFor", stolen.address, modulus, proof, consent)
    swarm.register(key(0), safe)
    values = (key(0).peer, stolen.address)
    swarm.refused("BadProof", values, stolen, "register", modulus, proof)
    swarm.refused("BadProof", values, relay, "registerFor", stolen.address, modulus, proof, consent)
    fresh = swarm.proof(key(0), stolen)
    swarm.refused("BadConsent", values, relay, "registerFor", stolen.address, modulus, fresh, consent)


def test_an_account_lists_the_peers_it_has_now(swarm, accounts):
    """All orders of leaving and coming back, among three peers of one account."""
    home, away = accounts[:2]
    for number in range(3):
        swarm.register(key(number), home)
    peers = [key(number).peer for number in range(3)]
    assert sorted(swarm.read("peersOf", home.address)) == sorted(peers)
    here = set(range(3))
    for number in (1, 0, 2, 0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 1, 2, 2, 0):
        target, here = (away, here - {number}) if number in here else (home, here | {number})
        swarm.register(key(number), target)
        listed = swarm.read("peersOf", home.address)
        assert sorted(listed) == sorted(peers[n] for n in here)
        elsewhere = swarm.read("peersOf", away.address)
        assert sorted(listed + elsewhere) == sorted(peers)


def test_moving_away_costs_the_same_however_many_peers_the_account_was_given(swarm, accounts):
    """Else whoever has the wallet could fill its list until the peer's owner cannot leave."""
    home = accounts[0]

    def leave(number):
        return swarm.register(key(number), accounts[1])["gasUsed"]

    swarm.register(key(0), home)
    swarm.register(key(1), home)
    few = leave(0)
    swarm.register(key(0), home)
    for number in range(2, 12):
        swarm.register(key(number), home)
    assert leave(0) < few + 1000


def test_rotation_hands_everything_to_the_new_key(swarm, accounts):
    old, new = key(0), key(1)
    me = accounts[0]
    swarm.register(old, me)
    swarm.register(key(2), me)
    report = make_report(0)
    swarm.report(old, me, report)
    swarm.report(key(2), me, report)
    swarm.send(me, "announceBootnode", old.peer, "/ip4/1.2.3.4")
    before = swarm.read("peerRecord", old.peer)

    swarm.rotate(old, new)
    assert swarm.read("peerRecord", new.peer) == (new.peer, *before[1:])
    assert swarm.read("peerRecord", old.peer) == (old.peer, ZERO, 0, 0, 0, 0, EMPTY)
    assert swarm.read("successorOf", old.peer) == new.peer
    assert swarm.read("accountOf", new.peer) == me.address
    assert not swarm.read("isRegistered", old.peer)
    assert sorted(swarm.read("peersOf", me.address)) == sorted([new.peer, key(2).peer])
    assert swarm.read("bindings", new.peer) == 1
    assert [record[0] for record in swarm.read("records", 0, 9)] == [new.peer, key(2).peer]
    assert swarm.read("reporterCount") == 2
    assert swarm.read("bootnodes", 9) == []
    (log,) = swarm.contract.events.Rotated.get_logs(from_block=0)
    assert (log["args"]["oldPeer"], log["args"]["newPeer"]) == (old.peer, new.peer)

    values = (new.peer, 0)
    swarm.refused("AlreadyReported", values, me, "report", new.peer, make_report(0, note=b"as the new one"))
    swarm.enter(1)
    swarm.report(new, me, make_report(1))
    assert swarm.read("peerRecord", new.peer)[6] == next_head(before[6], make_report(1))


def test_a_retired_key_can_do_nothing_any_more(swarm, accounts):
    old, new = key(0), key(1)
    me = accounts[0]
    swarm.register(old, me)
    swarm.rotate(old, new)
    retired = ("Retired", (old.peer, new.peer))
    reports = [make_report(0)]
    modulus = old.public_key.modulus
    assert swarm.refusal(me, "report", old.peer, reports[0]) == retired
    assert swarm.refusal(me, "reportBatch", old.peer, reports) == retired
    signature = swarm.report_signature(me, old.peer, reports)
    assert swarm.refusal(me, "reportFor", old.peer, reports, signature) == retired
    assert swarm.refusal(me, "announceBootnode", old.peer, "/a") == retired
    assert swarm.refusal(me, "register", modulus, swarm.proof(old, me)) == retired
    proof, consent = swarm.proof(old, me), swarm.consent(old, me)
    assert swarm.refusal(me, "registerFor", me.address, modulus, proof, consent) == retired
    assert swarm.refusal(me, "rotate", *swarm.rotation(old, new)) == retired
    assert swarm.refusal(me, "rotate", *swarm.rotation(old, key(2))) == retired


def test_a_peer_rotates_again_and_never_back(swarm, accounts):
    swarm.register(key(0), accounts[0])
    swarm.rotate(key(0), key(1))
    swarm.refused("PeerTaken", (key(0).peer,), accounts[0], "rotate", *swarm.rotation(key(1), key(0)))
    swarm.refused("PeerTaken", (key(1).peer,), accounts[0], "rotate", *swarm.rotation(key(1), key(1)))
    swarm.rotate(key(1), key(2))
    assert swarm.read("accountOf", key(2).peer) == accounts[0].address
    assert swarm.read("successorOf", key(0).peer) == key(1).peer
    assert swarm.read("successorOf", key(1).peer) == key(2).peer


def test_a_successor_must_be_a_new_key(swarm, accounts):
    swarm.register(key(0), accounts[0])
    swarm.refused("NotRegistered", (key(1).peer,), accounts[0], "rotate", *swarm.rotation(key(1), key(2)))
    swarm.register(key(1), accounts[1])
    swarm.refused("PeerTaken", (key(1).peer,), accounts[0], "rotate", *swarm.rotation(key(0), key(1)))


def test_a_rotation_needs_both_keys(swarm, accounts):
    swarm.register(key(0), accounts[0])
    old_modulus, new_modulus, by_old, by_new = swarm.rotation(key(0), key(1))
    for signatures in ((by_old, by_old), (by_new, by_new), (by_new, by_old), (b"", by_new), (by_old, b"")):
        values = (key(0).peer, key(1).peer)
        swarm.refused("BadRotation", values, accounts[0], "rotate", old_modulus, new_modulus, *signatures)


def test_a_rotation_fits_no_other_contract_or_chain(swarm, accounts):
    first, second = twins()
    first.register(key(0), accounts[0])
    for signed in (swarm, second):
        values = (key(0).peer, key(1).peer)
        first.refused("BadRotation", values, accounts[0], "rotate", *signed.rotation(key(0), key(1)))
    first.rotate(key(0), key(1))


def test_a_successor_can_be_moved_with_its_next_binding(swarm, accounts):
    swarm.register(key(0), accounts[0])
    swarm.rotate(key(0), key(1))
    swarm.register(key(1), accounts[1])
    assert swarm.read("peersOf", accounts[0].address) == []
    assert swarm.read("peersOf", accounts[1].address) == [key(1).peer]


def test_a_modulus_that_is_not_rsa_2048_is_refused(swarm, accounts):
    modulus = key(0).public_key.modulus
    swarm.register(key(1), accounts[0])
    for bad in (b"", modulus[1:], modulus + b"\1", b"\x7f" + modulus[1:], modulus[:-1] + b"\2", bytes(256)):
        swarm.refused("BadModulus", (), accounts[0], "register", bad, bytes(256))
        good = key(1).public_key.modulus
        for moduli in ((bad, good), (good, bad)):
            swarm.refused("BadModulus", (), accounts[0], "rotate", *moduli, bytes(256), bytes(256))
