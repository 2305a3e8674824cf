"""A swarm's creation: what is fixed for ever, and what is refused; and the clock."""

import hashlib

import pytest
from contract_cast import (
    MANIFEST,
    MAX_GROUPS,
    MAX_REWARD,
    ROUND_SECONDS,
    STAGE_ENDS,
    WINDOW,
    chain,
    constructor_arguments,
    create_swarm,
    refused_creation,
)

YEAR = 365 * 86400
CODE_LIMIT = 24_576  # EIP-170


@pytest.fixture(scope="module")
def swarm():
    return create_swarm()


def test_what_was_given_at_creation_can_be_read(swarm):
    expected = {
        "swarmId": hashlib.sha256(MANIFEST).digest(),
        "roundSeconds": ROUND_SECONDS,
        "acceptanceWindow": WINDOW,
        "maxGroups": MAX_GROUPS,
        "maxRewardMicros": MAX_REWARD,
        "stageEnds": STAGE_ENDS,
        "MAX_MANIFEST_BYTES": 16 * 1024,
        "MAX_MULTIADDR_BYTES": 256,
        "MAX_PAGE": 256,
        "MAX_VERDICTS_BYTES": 4096,
        "MAX_BATCH": 64,
        "BOOTNODE_SECONDS": 7 * 86400,
    }
    assert {name: swarm.read(name) for name in expected} == expected


def test_the_event_of_the_creation_holds_the_manifest_in_the_deployments_block(swarm):
    block = swarm.read("deploymentBlock")
    (log,) = swarm.contract.events.SwarmCreated.get_logs(from_block=block, to_block=block)
    assert log["args"] == {
        "swarmId": hashlib.sha256(MANIFEST).digest(),
        "genesis": swarm.genesis,
        "roundSeconds": ROUND_SECONDS,
        "manifest": MANIFEST,
    }


def test_the_eip_712_domain_is_published(swarm):
    _, name, version, chain_id, contract, _, _ = swarm.read("eip712Domain")
    assert (name, version, chain_id, contract) == ("SwarmCoordinator", "1", chain().id, swarm.address)


def test_the_contracts_fit_on_any_chain(swarm):
    view = chain().deploy("RLSwarmView", swarm.address)
    for address in (swarm.address, view.address):
        assert 0 < len(chain().web3.eth.get_code(address)) <= CODE_LIMIT


def test_no_ether_is_taken(swarm):
    assert all(entry.get("stateMutability") != "payable" for entry in swarm.contract.abi)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"round_seconds": 0}, ("BadRoundSeconds", ())),
        ({"manifest": bytes(16 * 1024 + 1)}, ("ManifestTooLarge", (16 * 1024 + 1, 16 * 1024))),
        ({"window": 0}, ("BadAcceptanceWindow", (0, 4096))),
        ({"window": 4097}, ("BadAcceptanceWindow", (4097, 4096))),
        ({"max_groups": 0}, ("BadCaps", (0, MAX_REWARD))),
        ({"max_reward": 0}, ("BadCaps", (MAX_GROUPS, 0))),
        ({"max_reward": 2**38}, ("BadCaps", (MAX_GROUPS, 2**38))),
        ({"stage_ends": [0]}, ("BadStages", ((0,),))),
        ({"stage_ends": [1_000_000]}, ("BadStages", ((1_000_000,),))),
        ({"stage_ends": [500, 500]}, ("BadStages", ((500, 500),))),
        ({"stage_ends": [500, 499]}, ("BadStages", ((500, 499),))),
        ({"stage_ends": list(range(1, 10))}, ("BadStages", (tuple(range(1, 10)),))),
    ],
)
def test_a_swarm_that_could_not_work_is_not_created(changes, error):
    assert refused_creation(chain(), **changes) == error


def test_a_genesis_more_than_a_year_away_is_refused():
    now = chain().time
    for genesis in (now + YEAR + 100, now - YEAR - 100, now * 1000, 0, 2**64 - 1):
        name, (given, _) = refused_creation(chain(), genesis=genesis)
        assert (name, given) == ("BadGenesis", genesis)


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": b""},
        {"manifest": bytes(16 * 1024)},
        {"window": 1},
        {"window": 4096},
        {"max_groups": 2**32 - 1},
        {"max_reward": 2**38 - 1},
        {"stage_ends": []},
        {"stage_ends": [1, 2, 3, 4, 5, 6, 7, 999_999]},
    ],
)
def test_the_extremes_are_allowed(changes):
    create_swarm(**changes)


def test_the_round_follows_the_blocks_time_alone(swarm):
    for round, offset in ((3, 0), (3, ROUND_SECONDS - 1), (4, 0), (4, 1), (1000, 0)):
        swarm.enter(round, offset)
        assert swarm.read("currentRound") == round


def test_before_genesis_there_is_no_round():
    now = chain().time
    swarm = create_swarm(genesis=now + 500)
    sender = swarm.chain.account()
    name, (genesis, _) = swarm.refusal(sender, "currentRound")
    assert (name, genesis) == ("BeforeGenesis", now + 500)
    swarm.enter(0)
    assert swarm.read("currentRound") == 0


def test_no_function_can_be_meant_for_an_owner(swarm):
    """Everything that changes something is in this list; docs/contract.md says who may call each."""
    writing = {
        entry["name"]
        for entry in swarm.contract.abi
        if entry["type"] == "function" and entry["stateMutability"] not in ("view", "pure")
    }
    assert writing == {
        "register",
        "registerFor",
        "rotate",
        "report",
        "reportBatch",
        "reportFor",
        "announceBootnode",
        "announceBootnodeFor",
    }
    assert len(constructor_arguments(chain())) == 7
