"""Bootnodes: one of each peer, newest first, until they expire."""

import pytest
from contract_cast import GAS, WEEK, Account, chain, create_swarm, key, read_error
from eth_abi import encode
from eth_utils import keccak
from hypothesis import example, given, settings
from hypothesis import strategies as st
from web3.exceptions import ContractCustomError

SELECTOR = keccak(text="announceBootnode(bytes32,string)")[:4]


@pytest.fixture(scope="module")
def me():
    return chain().account()


@pytest.fixture
def swarm(me):
    """Keys 0 to 3 are registered."""
    swarm = create_swarm()
    for number in range(4):
        swarm.register(key(number), me)
    return swarm


def announce(swarm, me, number, multiaddr):
    swarm.send(me, "announceBootnode", key(number).peer, multiaddr)


def test_each_peer_has_its_latest_one_newest_first(swarm, me):
    assert swarm.read("bootnodes", 10) == []
    for number, multiaddr in ((0, "/a/1"), (1, "/b/1"), (2, "/c/1"), (1, "/b/2"), (1, "/b/3"), (0, "/a/2")):
        announce(swarm, me, number, multiaddr)
    assert swarm.read("bootnodes", 10) == ["/a/2", "/b/3", "/c/1"]
    assert swarm.read("bootnodes", 2) == ["/a/2", "/b/3"]
    assert swarm.read("bootnodes", 0) == []
    assert swarm.read("bootnodes", 2**256 - 1) == ["/a/2", "/b/3", "/c/1"]
    announce(swarm, me, 2, "/c/2")
    assert swarm.read("bootnodes", 10) == ["/c/2", "/a/2", "/b/3"]


def test_an_announcement_is_an_event_and_can_be_read(swarm, me):
    assert swarm.read("bootnodeOf", key(0).peer) == ["", 0]
    announce(swarm, me, 0, "/ip4/1.2.3.4")
    assert swarm.read("bootnodeOf", key(0).peer) == ["/ip4/1.2.3.4", swarm.chain.time + WEEK]
    (log,) = swarm.contract.events.BootnodeAnnounced.get_logs(from_block=0)
    assert log["args"] == {"peer": key(0).peer, "multiaddr": "/ip4/1.2.3.4"}


def test_a_bootnode_is_listed_for_a_week_after_its_last_announcement(swarm, me):
    announce(swarm, me, 0, "/a")
    first = swarm.chain.time
    announce(swarm, me, 1, "/b")
    second = swarm.chain.time
    announce(swarm, me, 2, "/c")
    swarm.chain.next_at(first + WEEK // 2)
    announce(swarm, me, 0, "/a/again")
    swarm.chain.mine_at(second + WEEK - 1)
    assert swarm.read("bootnodes", 10) == ["/a/again", "/c", "/b"]
    swarm.chain.mine_at(second + WEEK)
    assert swarm.read("bootnodes", 10) == ["/a/again", "/c"]
    swarm.chain.mine_at(second + WEEK + 1)
    assert swarm.read("bootnodes", 10) == ["/a/again"]
    announce(swarm, me, 1, "/b/back")
    assert swarm.read("bootnodes", 10) == ["/b/back", "/a/again"]
    swarm.chain.mine_at(first + 2 * WEEK)
    assert swarm.read("bootnodes", 10) == ["/b/back"]
    announced, expires = swarm.read("bootnodeOf", key(0).peer)
    assert announced == "/a/again" and expires < swarm.chain.time


def signed_announcement(swarm, me, number, multiaddr, announced_at):
    message = {"peer": key(number).peer, "multiaddr": multiaddr, "announcedAt": announced_at}
    return key(number).peer, multiaddr, announced_at, swarm.typed(me, "Bootnode", message)


def test_anyone_submits_what_the_account_signed_once(swarm, me):
    relay = chain().account()
    first = signed_announcement(swarm, me, 0, "/a/1", swarm.chain.time)
    swarm.send(relay, "announceBootnodeFor", *first)
    assert swarm.read("bootnodes", 10) == ["/a/1"]
    listed_at = swarm.chain.time
    swarm.chain.next_at(listed_at + 10)
    swarm.send(relay, "announceBootnodeFor", *signed_announcement(swarm, me, 0, "/a/2", listed_at + 5))
    assert swarm.read("bootnodes", 10) == ["/a/2"]
    now = swarm.chain.time
    swarm.chain.mine_at(now + 20)
    for old in (first, signed_announcement(swarm, me, 0, "/a/3", now)):
        values = (old[2], now, now + 20)
        swarm.refused("BadAnnouncementTime", values, relay, "announceBootnodeFor", *old)


@pytest.mark.parametrize("off", [1, -3601])
def test_an_announcement_of_another_time_is_not_taken(swarm, me, off):
    now = swarm.chain.time + 100
    swarm.chain.mine_at(now)
    late = signed_announcement(swarm, me, 0, "/a", now + off)
    values = (now + off, 0, now)
    swarm.refused("BadAnnouncementTime", values, chain().account(), "announceBootnodeFor", *late)


def test_an_announcement_by_another_or_for_another_contract_is_not_taken(swarm, me):
    stranger, elsewhere = chain().account(), create_swarm()
    elsewhere.register(key(0), me)
    now = swarm.chain.time
    good = signed_announcement(swarm, me, 0, "/a", now)
    values = (key(0).peer, me.address)
    for on, signed in (
        (elsewhere, good),
        (swarm, signed_announcement(swarm, stranger, 0, "/a", now)),
        (swarm, (*good[:1], "/b", *good[2:])),
        (swarm, (*good[:2], now - 1, good[3])),
        (swarm, (*good[:3], good[3][:-1])),
    ):
        on.refused("BadBootnodeSignature", values, stranger, "announceBootnodeFor", *signed)


def test_nobody_announces_for_another(swarm, me):
    stranger = chain().account()
    values = (key(0).peer, me.address)
    swarm.refused("NotPeersAccount", values, stranger, "announceBootnode", key(0).peer, "/a")
    swarm.refused("NotRegistered", (key(5).peer,), stranger, "announceBootnode", key(5).peer, "/a")


@pytest.mark.parametrize("rotated", [0, 1, 2])
def test_a_rotated_peers_bootnode_leaves_the_list_whole(swarm, me, rotated):
    for number in range(3):
        announce(swarm, me, number, f"/{number}")
    swarm.rotate(key(rotated), key(4))
    left = [f"/{number}" for number in (2, 1, 0) if number != rotated]
    assert swarm.read("bootnodes", 10) == left
    assert swarm.read("bootnodeOf", key(rotated).peer) == swarm.read("bootnodeOf", key(4).peer) == ["", 0]
    announce(swarm, me, 4, "/4")
    announce(swarm, me, 3, "/3")
    assert swarm.read("bootnodes", 10) == ["/3", "/4", *left]
    oldest = next(number for number in range(3) if number != rotated)
    announce(swarm, me, oldest, "/moved")
    assert swarm.read("bootnodes", 10) == ["/moved", "/3", "/4", left[0]]


def test_a_bootnode_that_came_to_the_front_again_can_be_rotated_away(swarm, me):
    for number in (0, 1, 2, 0):
        announce(swarm, me, number, f"/{number}")
    swarm.rotate(key(0), key(4))
    assert swarm.read("bootnodes", 10) == ["/2", "/1"]
    announce(swarm, me, 1, "/1")
    assert swarm.read("bootnodes", 10) == ["/1", "/2"]


def test_a_bootnode_stays_when_its_peer_moves(swarm, me):
    announce(swarm, me, 0, "/a")
    swarm.register(key(0), chain().account())
    assert swarm.read("bootnodes", 10) == ["/a"]


def test_a_page_of_bootnodes_has_at_most_256(swarm, me):
    """Of an endless list: the only entry is made its own successor, by writing storage."""
    announce(swarm, me, 0, "/a")
    for slot in range(20):
        entry = int.from_bytes(keccak(encode(["bytes32", "uint256"], [key(0).peer, slot])), "big")
        if int(swarm.chain.devnet.call("eth_getStorageAt", swarm.address, hex(entry + 2), "latest"), 16):
            break
    older = "0x" + key(0).peer.hex()
    swarm.chain.devnet.call("anvil_setStorageAt", swarm.address, hex(entry + 1), older)
    assert swarm.read("bootnodes", 2**256 - 1) == ["/a"] * 256
    assert swarm.read("bootnodes", 3) == ["/a"] * 3


@settings(max_examples=120, deadline=None)
@given(
    multiaddr=st.binary(max_size=20)
    | st.binary(max_size=20).map(lambda tail: b"/" + tail)
    | st.text(st.characters(min_codepoint=0x1E, max_codepoint=0x80), max_size=300).map(
        lambda t: b"/" + t.encode()
    )
)
@example(b"")
@example(b"/")
@example(b"/" + b"x" * 255)
@example(b"/" + b"x" * 256)
@example(b"ip4")
@example("/é".encode())
@example(b"/\xff")
@example(b"/a b")
@example(b"/a\n")
@example(b"/~!")
@example(b"/\x7f")
def test_a_multiaddr_is_printable_ascii_that_begins_with_a_slash(multiaddr):
    swarm, account = _shared()
    data = SELECTOR + encode(["bytes32", "bytes"], [key(0).peer, multiaddr])
    request = {"from": account.address, "to": swarm.address, "gas": GAS, "data": "0x" + data.hex()}
    if 1 <= len(multiaddr) <= 256 and multiaddr[:1] == b"/" and all(0x20 < byte < 0x7F for byte in multiaddr):
        assert chain().web3.eth.call(request) == b""
    else:
        with pytest.raises(ContractCustomError) as caught:
            chain().web3.eth.call(request)
        assert read_error(str(caught.value.data)) == ("BadMultiaddr", ())


_cast = []


def _shared():
    """One swarm for all examples; none of them changes it."""
    if not _cast:
        swarm, account = create_swarm(), chain().account()
        swarm.register(key(0), account)
        _cast.append((swarm, account))
    return _cast[0]


def test_an_account_without_a_peer_announces_nothing():
    swarm = create_swarm()
    swarm.refused("NotRegistered", (bytes(32),), Account.create(), "announceBootnode", bytes(32), "/a")
