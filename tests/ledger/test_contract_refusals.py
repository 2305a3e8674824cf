"""Every custom error of the contract can happen, and is put in words."""

import pytest
from contract_cast import (
    GAS,
    MAX_GROUPS,
    MAX_REWARD,
    WINDOW,
    chain,
    constructor_arguments,
    create_swarm,
    errors,
    key,
    make_report,
)
from web3.exceptions import ContractCustomError

from swarm.ledger.refusals import _WORDS, ContractRefusal, translated

# OpenZeppelin's EIP712 brings these two into the ABI; both are about names of more than 31 characters.
UNREACHABLE = {"InvalidShortString", "StringTooLong"}


@pytest.fixture(scope="module")
def scene():
    """Round 50. Key 0 was registered and is key 1 now, key 2 is registered, key 3 is not; one account."""
    swarm, me = create_swarm(), chain().account()
    swarm.register(key(0), me)
    swarm.register(key(2), me)
    swarm.rotate(key(0), key(1))
    swarm.enter(50)
    swarm.report(key(2), me, make_report(50))
    return swarm, me


def creation(**changes):
    on = chain()
    constructor = on.factory("SwarmCoordinator").constructor(*constructor_arguments(on, **changes))
    request = {"from": on.deployer.address, "gas": GAS, "data": constructor.data_in_transaction}
    return lambda swarm, me: on.web3.eth.call(request)


def call(name, *arguments, sender=None):
    def act(swarm, me):
        given = [argument(swarm, me) if callable(argument) else argument for argument in arguments]
        who = sender or me
        return getattr(swarm.contract.functions, name)(*given).call({"from": who.address, "gas": GAS})

    return act


def report(**claims):
    claims = {"round": 49} | claims
    return call("report", lambda s, me: key(2).peer, lambda s, me: make_report(**claims))


def peer(number):
    return lambda swarm, me: key(number).peer


def modulus(number):
    return lambda swarm, me: key(number).public_key.modulus


def before_genesis(swarm, me):
    return create_swarm(genesis=chain().time + 500).read("currentRound")


def consentless(swarm, me):
    arguments = (me.address, key(3).public_key.modulus, swarm.proof(key(3), me), b"")
    return swarm.contract.functions.registerFor(*arguments).call({"from": me.address})


def again(swarm, me):
    arguments = (key(2).public_key.modulus, swarm.proof(key(2), me))
    return swarm.contract.functions.register(*arguments).call({"from": me.address})


def rotation(old, new, *signatures):
    return lambda swarm, me: swarm.contract.functions.rotate(
        *swarm.rotation(key(old), key(new))[: 4 - len(signatures)], *signatures
    ).call({"from": me.address})


def a_stranger(swarm, me):
    return call("announceBootnode", peer(2), "/a", sender=chain().deployer)(swarm, me)


REFUSALS = {
    "BadRoundSeconds": creation(round_seconds=0),
    "BadGenesis": creation(genesis=1),
    "ManifestTooLarge": creation(manifest=bytes(20_000)),
    "BadAcceptanceWindow": creation(window=0),
    "BadCaps": creation(max_groups=0),
    "BadStages": creation(stage_ends=[5, 4]),
    "BeforeGenesis": before_genesis,
    "BadModulus": call("register", b"", b""),
    "BadProof": call("register", modulus(3), b""),
    "BadConsent": consentless,
    "BadRotation": rotation(2, 3, b""),
    "AlreadyRegistered": again,
    "PeerTaken": rotation(2, 1),
    "Retired": call("announceBootnode", peer(0), "/a"),
    "NotRegistered": call("announceBootnode", peer(3), "/a"),
    "NotPeersAccount": a_stranger,
    "BadReportSignature": call("reportFor", peer(2), lambda s, me: [make_report(49)], b""),
    "BadBatch": call("reportBatch", peer(2), []),
    "FutureRound": report(round=51),
    "TooLate": report(round=50 - WINDOW - 1),
    "AlreadyReported": report(round=50),
    "TooManyGroups": report(groups=MAX_GROUPS + 1),
    "RewardTooHigh": report(reward=MAX_REWARD + 1),
    "VerdictsTooLarge": report(verdicts=bytes(5000)),
    "BadBootnodeSignature": call("announceBootnodeFor", peer(2), "/a", lambda s, me: s.chain.time, b""),
    "BadAnnouncementTime": call("announceBootnodeFor", peer(2), "/a", 1, b""),
    "BadMultiaddr": call("announceBootnode", peer(2), "nonsense"),
}


def test_the_errors_known_in_words_are_the_contracts():
    contracts = {name for name, _ in errors().values()} - UNREACHABLE
    assert contracts == set(_WORDS) == set(REFUSALS)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line_in_words(scene, name):
    with pytest.raises(ContractRefusal) as caught, translated("the call", "localhost"):
        REFUSALS[name](*scene)
    assert caught.value.name == name
    line = str(caught.value)
    assert "\n" not in line and line.endswith(f"({name})")
    assert "b'" not in line and "{" not in line
    assert isinstance(caught.value.__cause__, ContractCustomError)
    if {"peer", "oldPeer"} & caught.value.arguments.keys() and name != "AlreadyReported":
        assert "peer Qm" in line
