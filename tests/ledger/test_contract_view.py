"""RLSwarmView answers what readers of RL Swarm's contract ask, with exactly their types."""

import base58
import pytest
from contract_cast import ROUND_SECONDS, STAGE_ENDS, ZERO, chain, create_swarm, key, make_report
from hypothesis import example, given, settings
from hypothesis import strategies as st

from identity import peer_id_text
from swarm.ledger.refusals import artifact

# Written down by hand from DESIGN.md, section 6: this is what those readers were compiled with.
SIGNATURES = {
    "currentRound": ((), "uint256"),
    "currentStage": ((), "uint256"),
    "stageCount": ((), "uint256"),
    "getPeerId": (("address[]",), "string[][]"),
    "getEoa": (("string[]",), "address[]"),
    "getBootnodes": ((), "string[]"),
    "getBootnodesCount": ((), "uint256"),
    "getTotalRewards": (("string[]",), "int256[]"),
    "getRoundStageReward": (("uint256", "uint256", "address[]"), "int256[]"),
    "hasSubmittedRoundStageReward": (("uint256", "uint256", "string"), "bool"),
    "getTotalWins": (("string",), "uint256"),
    "getVoterVoteCount": (("string",), "uint256"),
    "uniqueVoters": ((), "uint256"),
}
ABI = [
    {
        "type": "function",
        "name": name,
        "stateMutability": "view",
        "inputs": [{"name": f"_{index}", "type": kind} for index, kind in enumerate(inputs)],
        "outputs": [{"name": "", "type": output}],
    }
    for name, (inputs, output) in SIGNATURES.items()
]
LAST = len(STAGE_ENDS)  # the last stage's number
BEYOND = 2**64


class View:
    def __init__(self, swarm):
        address = chain().deploy("RLSwarmView", swarm.address).address
        self.contract = swarm.chain.web3.eth.contract(address=address, abi=ABI)

    def __getattr__(self, name):
        return lambda *arguments: getattr(self.contract.functions, name)(*arguments).call()


def peer_id(number):
    return peer_id_text(key(number).peer)


@pytest.fixture(scope="module")
def accounts():
    return [chain().account() for _ in range(3)]


@pytest.fixture(scope="module")
def scene(accounts):
    """Round 7: keys 0 and 1 belong to account 0 and reported, key 2 belongs to account 1 and did not."""
    swarm = create_swarm()
    for number, account in ((0, 0), (1, 0), (2, 1)):
        swarm.register(key(number), accounts[account])
    swarm.enter(5)
    swarm.report(key(0), accounts[0], make_report(5, reward=100))
    swarm.report(key(1), accounts[0], make_report(5, reward=20))
    swarm.enter(7)
    swarm.report(key(0), accounts[0], make_report(6, reward=3000))  # late
    swarm.send(accounts[1], "announceBootnode", key(2).peer, "/ip4/1.2.3.4")
    swarm.send(accounts[0], "announceBootnode", key(0).peer, "/ip4/5.6.7.8")
    return swarm, View(swarm)


def test_the_view_has_these_functions_and_no_others(scene):
    swarm, view = scene
    found = {
        entry["name"]: (tuple(i["type"] for i in entry["inputs"]), *(o["type"] for o in entry["outputs"]))
        for entry in artifact("RLSwarmView")["abi"]
        if entry["type"] == "function"
    }
    assert found.pop("coordinator") == ((), "address")
    assert found == SIGNATURES
    coordinator = chain().web3.eth.contract(address=view.contract.address, abi=artifact("RLSwarmView")["abi"])
    assert coordinator.functions.coordinator().call() == swarm.address


def test_the_view_only_reads():
    functions = [entry for entry in artifact("RLSwarmView")["abi"] if entry["type"] == "function"]
    assert all(entry["stateMutability"] == "view" for entry in functions)


def test_peers_are_named_by_their_libp2p_ids(scene, accounts):
    _, view = scene
    asked = [accounts[1].address, accounts[2].address, accounts[0].address, ZERO]
    found = view.getPeerId(asked)
    assert [sorted(ids) for ids in found] == [[peer_id(2)], [], sorted([peer_id(0), peer_id(1)]), []]
    assert view.getPeerId([]) == []
    assert all(peer_id(number).startswith("Qm") for number in range(3))


def test_accounts_are_found_by_peer_id(scene, accounts):
    _, view = scene
    asked = [peer_id(2), peer_id(3), peer_id(0), "nonsense", ""]
    assert view.getEoa(asked) == [accounts[1].address, ZERO, accounts[0].address, ZERO, ZERO]


def test_rewards_wins_and_votes_are_sums_of_reports(scene):
    _, view = scene
    asked = [peer_id(number) for number in range(4)]
    assert view.getTotalRewards(asked) == [100, 20, 0, 0]
    assert [view.getTotalWins(each) for each in asked] == [1, 1, 0, 0]
    assert [view.getVoterVoteCount(each) for each in asked] == [2, 1, 0, 0]
    assert view.uniqueVoters() == 2


def test_a_rounds_reward_counts_for_its_last_stage(scene, accounts):
    _, view = scene
    asked = [account.address for account in accounts]
    assert view.getRoundStageReward(5, LAST, asked) == [120, 0, 0]
    assert view.getRoundStageReward(6, LAST, asked) == [3000, 0, 0]
    for round, stage in (
        (5, 0),
        (5, LAST - 1),
        (5, LAST + 1),
        (4, LAST),
        (5, 2**256 - 1),
        (5 + BEYOND, LAST),
    ):
        assert view.getRoundStageReward(round, stage, asked) == [0, 0, 0]
    assert view.getRoundStageReward(5, LAST, []) == []


def test_whether_a_round_was_submitted(scene):
    _, view = scene
    assert view.hasSubmittedRoundStageReward(5, LAST, peer_id(0))
    assert view.hasSubmittedRoundStageReward(6, LAST, peer_id(0))
    for round, stage, who in (
        (5, LAST - 1, peer_id(0)),
        (5, LAST + 1, peer_id(0)),
        (5, 2**256 - 1, peer_id(0)),
        (6, LAST, peer_id(1)),
        (5 + BEYOND, LAST, peer_id(0)),
        (2**256 - 1, LAST, peer_id(0)),
        (5, LAST, "nonsense"),
    ):
        assert not view.hasSubmittedRoundStageReward(round, stage, who)


def test_bootnodes_are_the_swarms(scene):
    swarm, view = scene
    assert view.getBootnodes() == swarm.read("bootnodes", 256) == ["/ip4/5.6.7.8", "/ip4/1.2.3.4"]
    assert view.getBootnodesCount() == 2


def test_the_stage_changes_at_the_fractions_of_the_round():
    swarm = create_swarm()
    view = View(swarm)
    assert view.stageCount() == 4
    for offset, stage in ((0, 0), (249, 0), (250, 1), (599, 1), (600, 2), (799, 2), (800, 3), (999, 3)):
        swarm.enter(9, offset)
        assert (view.currentRound(), view.currentStage()) == (9, stage)


def test_a_stage_ends_no_earlier_than_its_fraction():
    """1/3 of a round of 1000 s is over at 334 s, not at 333 s."""
    swarm = create_swarm(stage_ends=[333_334])
    view = View(swarm)
    swarm.enter(1, 333)
    assert view.currentStage() == 0
    swarm.enter(1, 334)
    assert view.currentStage() == 1


def test_a_swarm_of_one_stage_counts_reports_for_it(accounts):
    swarm = create_swarm(stage_ends=[])
    view = View(swarm)
    swarm.register(key(0), accounts[0])
    swarm.report(key(0), accounts[0], make_report(0, reward=7))
    assert (view.stageCount(), view.currentStage()) == (1, 0)
    assert view.getRoundStageReward(0, 0, [accounts[0].address]) == [7]


def test_before_genesis_the_view_says_zero():
    swarm = create_swarm(genesis=chain().time + 3 * ROUND_SECONDS)
    view = View(swarm)
    assert (view.currentRound(), view.currentStage(), view.uniqueVoters()) == (0, 0, 0)
    assert view.getBootnodes() == []


def test_a_successor_is_read_in_place_of_its_predecessor(accounts):
    swarm = create_swarm()
    view = View(swarm)
    swarm.register(key(0), accounts[0])
    swarm.report(key(0), accounts[0], make_report(0, reward=7))
    swarm.rotate(key(0), key(1))
    assert view.getPeerId([accounts[0].address]) == [[peer_id(1)]]
    assert view.getTotalRewards([peer_id(0), peer_id(1)]) == [0, 7]
    assert view.getRoundStageReward(0, LAST, [accounts[0].address]) == [7]
    assert view.uniqueVoters() == 1


BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.text(BASE58, min_size=40, max_size=50)
    | st.text(BASE58, min_size=44, max_size=44).map(lambda tail: "Qm" + tail)
)
@example("Qm" + "z" * 44)
@example("1" * 46)
@example("z" * 46)
@example("Qm" + "0" * 44)
@example("Qm" + "O" * 44)
@example("Qm" + "I" * 44)
@example("Qm" + "l" * 44)
@example("Qm" + "é" * 22)
def test_what_is_no_peer_of_the_swarm_reads_as_nothing(text):
    view = _shared_view()
    assert view.getEoa([text, peer_id(0)])[0] == ZERO
    assert view.getTotalRewards([text]) == [0]
    assert view.getTotalWins(text) == view.getVoterVoteCount(text) == 0
    assert not view.hasSubmittedRoundStageReward(0, LAST, text)


def test_the_digest_of_a_peer_in_another_multihash_is_not_the_peer():
    view = _shared_view()
    for prefix in (b"\x12\x21", b"\x11\x20", b"\x12\x1f"):
        text = base58.b58encode(prefix + key(0).peer).decode()
        assert len(text) == 46
        assert view.getEoa([text, peer_id(0)]) == [ZERO, view.getEoa([peer_id(0)])[0]]


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 45), character=st.sampled_from(BASE58))
def test_a_peer_id_with_a_typing_error_is_not_the_peer(index, character):
    view, right = _shared_view(), peer_id(0)
    typed = right[:index] + character + right[index + 1 :]
    assert (view.getEoa([typed])[0] != ZERO) == (typed == right)


_cast = []


def _shared_view():
    """One swarm for all examples; key 0 reported its round 0."""
    if not _cast:
        swarm, account = create_swarm(), chain().account()
        swarm.register(key(0), account)
        swarm.report(key(0), account, make_report(0))
        _cast.append(View(swarm))
    return _cast[0]
