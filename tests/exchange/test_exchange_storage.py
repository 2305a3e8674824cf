"""`RecordStorage` by itself: its limits, its clock, and that nothing in it is replaced."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hivemind.dht.routing import DHTID

from swarm.exchange.storage import MAX_RECORDS, MAX_RECORDS_PER_KEY, SWEEP_SECONDS, RecordStorage

FULL = "node holds as many records as it may"
OWN = b"o" * 32
YEAR_1970, FAR_FUTURE = 1000.0, 1e12  # neither is this machine's time


@dataclass
class Ledger:
    """Whose clock the storage reads, and what it refused."""

    time: float = YEAR_1970
    refused: list[tuple[str, bytes]] = field(default_factory=list)
    registered: dict[bytes, bool] = field(default_factory=dict)

    def storage(self) -> RecordStorage:
        return RecordStorage(
            OWN,
            lambda: self.time,
            lambda peer: self.registered.get(peer),
            lambda reason, peer: self.refused.append((reason, peer)),
        )


def key(n: int) -> DHTID:
    return DHTID.generate(source=f"key {n}")


def peer(n: int) -> bytes:
    return n.to_bytes(32, "big")


def held(storage: RecordStorage, n: int) -> dict[bytes, bytes]:
    found = storage.get(key(n))
    return {} if found is None else {subkey: value for subkey, (value, _) in found.value.data.items()}


def test_record_is_kept_under_its_key_and_peer_and_never_replaced():
    ledger = Ledger()
    storage = ledger.storage()
    assert storage.store(key(1), b"first", 2000.0, subkey=peer(1))
    assert not storage.store(key(1), b"second", 3000.0, subkey=peer(1))
    assert storage.store(key(1), b"another's", 2000.0, subkey=peer(2))
    assert held(storage, 1) == {peer(1): b"first", peer(2): b"another's"}
    assert held(storage, 2) == {}
    assert len(storage) == 2 and not ledger.refused


def test_plain_value_is_never_kept():
    storage = Ledger().storage()
    assert storage.store(key(1), b"record", 2000.0, subkey=peer(1))
    assert not storage.store(key(1), b"plain", 3000.0)
    assert not storage.store(key(2), b"plain", 3000.0)
    assert held(storage, 1) == {peer(1): b"record"} and storage.get(key(2)) is None


def test_crowded_key_refuses_more_and_other_keys_do_not():
    ledger = Ledger()
    storage = ledger.storage()
    for n in range(MAX_RECORDS_PER_KEY):
        assert storage.store(key(1), b"x", 2000.0, subkey=peer(n))
    assert not storage.store(key(1), b"x", 2000.0, subkey=peer(MAX_RECORDS_PER_KEY))
    assert ledger.refused == [(FULL, peer(MAX_RECORDS_PER_KEY))]
    assert storage.store(key(2), b"x", 2000.0, subkey=peer(1))
    assert len(held(storage, 1)) == MAX_RECORDS_PER_KEY


def test_full_storage_refuses_more_until_records_expire():
    ledger = Ledger()
    storage = ledger.storage()
    for n in range(MAX_RECORDS):
        number, place = divmod(n, MAX_RECORDS_PER_KEY)
        expiration = 1500.0 if number == 0 else 2000.0
        assert storage.store(key(number), b"x", expiration, subkey=peer(place))
    assert len(storage) == MAX_RECORDS
    assert not storage.store(key(-1), b"x", 2000.0, subkey=peer(1))
    assert ledger.refused == [(FULL, peer(1))] and storage.get(key(-1)) is None
    ledger.time = 1500.0 + SWEEP_SECONDS
    assert storage.store(key(-1), b"x", 2000.0, subkey=peer(1))
    assert len(storage) == MAX_RECORDS - MAX_RECORDS_PER_KEY + 1


@pytest.mark.parametrize("now", [YEAR_1970, FAR_FUTURE])
def test_records_leave_by_the_given_clock(now):
    ledger = Ledger(now)
    storage = ledger.storage()
    storage.store(key(1), b"early", now + 10, subkey=peer(1))
    storage.store(key(2), b"late", now + 20, subkey=peer(1))
    ledger.time = now + 10
    assert held(storage, 1) == {peer(1): b"early"}
    ledger.time = now + 10 + 2 * SWEEP_SECONDS
    assert held(storage, 1) == {} and held(storage, 2) == {peer(1): b"late"}
    assert [found for found, _ in storage.items()] == [key(2)] and len(storage) == 1
    ledger.time = now + 20 + 2 * SWEEP_SECONDS
    assert len(list(storage.items())) == len(storage) == 0
    assert storage.store(key(1), b"again", ledger.time + 10, subkey=peer(1))


def test_what_a_search_adds_to_its_copy_is_not_kept():
    storage = Ledger().storage()
    storage.store(key(1), b"record", 2000.0, subkey=peer(1))
    found = storage.get(key(1))
    assert found is not None
    found.value.store(peer(2), b"from another node", 2000.0)
    found.value.store(peer(1), b"from another node", 3000.0)
    assert held(storage, 1) == {peer(1): b"record"} and len(storage) == 1


def test_own_record_fits_into_what_is_full():
    ledger = Ledger()
    storage = ledger.storage()
    for n in range(MAX_RECORDS_PER_KEY):
        assert storage.store(key(1), b"x", 2000.0, subkey=peer(n))
    assert not storage.store(key(1), b"x", 2000.0, subkey=peer(MAX_RECORDS_PER_KEY))
    assert storage.store(key(1), b"own", 2000.0, subkey=OWN)
    assert held(storage, 1)[OWN] == b"own"


def test_strangers_make_room_as_soon_as_the_ledger_says_that_they_are_some():
    ledger = Ledger()
    storage = ledger.storage()
    for n in range(MAX_RECORDS_PER_KEY):  # while nobody can say who is registered
        assert storage.store(key(1), b"x", 2000.0, subkey=peer(n))
    ledger.registered = {peer(n): n == 7 for n in range(MAX_RECORDS_PER_KEY)}
    newcomer = peer(MAX_RECORDS_PER_KEY)
    assert not storage.store(key(1), b"x", 2000.0, subkey=newcomer)
    ledger.time += SWEEP_SECONDS
    assert storage.store(key(1), b"x", 2000.0, subkey=newcomer)
    assert set(held(storage, 1)) == {peer(7), newcomer} and len(storage) == 2
