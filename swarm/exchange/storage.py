"""The DHT records that this node holds: hivemind's storage, by the ledger's clock and with limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from hivemind.dht.routing import DHTID, BinaryDHTValue, Subkey
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

#: A cell has about 16 peers, seldom over 24 (`cell_size` may be larger); more in one place is an attack.
MAX_RECORDS_PER_KEY = 512
#: About 1 kB each. What a node is responsible for does not grow with the swarm: one key a cell and stage.
MAX_RECORDS = 16_384
SWEEP_SECONDS = 1.0


def frozen_dictionary() -> DictionaryDHTValue:
    """An empty dictionary whose records do not leave it by this machine's clock, which may be off."""
    dictionary = DictionaryDHTValue()
    dictionary.frozen = True
    return dictionary


class RecordStorage(DHTLocalStorage):
    """What hivemind's protocol and node use to keep and find records; all of them passed the validator.

    `now` is the ledger's time in Unix seconds. `refuse(reason, peer)` is called for what does not fit; what
    this peer (`own`) announces itself does always. It outlives the p2p daemon: a node that is built anew goes
    on with it.
    """

    def __init__(
        self,
        own: bytes,
        now: Callable[[], float],
        registered: Callable[[bytes], bool | None],
        refuse: Callable[[str, bytes], None],
    ) -> None:
        super().__init__()
        self._own = own
        self._now = now
        self._registered = registered
        self._refuse = refuse
        self._count = 0
        self._swept_at = -inf

    def store_subkey(self, key: DHTID, subkey: Subkey, value: BinaryDHTValue, expiration_time: float) -> bool:
        """Keep a record; whether it is new. What is held is never replaced."""
        self._remove_outdated()
        held = self.data.get(key)
        records = held.value.data if held is not None else {}
        if subkey in records:
            return False
        is_full = len(records) >= MAX_RECORDS_PER_KEY or self._count >= MAX_RECORDS
        if is_full and subkey != self._own:
            self._refuse("node holds as many records as it may", subkey)
            return False
        if held is None:
            held = self.data[key] = ValueWithExpiration(frozen_dictionary(), expiration_time)
        self._count += 1
        return bool(held.value.store(subkey, value, expiration_time))

    def store(
        self, key: DHTID, value: BinaryDHTValue, expiration_time: float, subkey: Subkey | None = None
    ) -> bool:
        """As `store_subkey`; a plain value is never kept."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def get(self, key: DHTID) -> ValueWithExpiration[DictionaryDHTValue] | None:
        """A copy of what is held under a key: hivemind's searches write what they find into it."""
        self._remove_outdated()
        held = self.data.get(key)
        if held is None:
            return None
        copy = frozen_dictionary()
        for subkey, (value, expiration) in held.value.data.items():
            copy.store(subkey, value, expiration)
        return ValueWithExpiration(copy, held.expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration[DictionaryDHTValue]]]:
        """All keys with what is held under them, as it is."""
        self._remove_outdated()
        return iter(list(self.data.items()))

    def __len__(self) -> int:
        """How many records there are, under all keys."""
        return self._count

    def _remove_outdated(self) -> None:
        now = self._now()
        if abs(now - self._swept_at) < SWEEP_SECONDS:
            return
        self._swept_at = now
        # All records of a key expire together: the round fixes when.
        for key in [key for key, held in self.data.items() if held.expiration_time < now]:
            del self.data[key]
        # What came while nobody could say who is registered does not take the place of those who are.
        for held in self.data.values():
            for peer in [peer for peer in held.value.data if self._registered(peer) is False]:
                del held.value[peer]
        self._count = sum(len(held.value.data) for held in self.data.values())
