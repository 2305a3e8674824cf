import hashlib
import random
from importlib.resources import files

import pytest

from identity import peer_name
from identity.names import WORD_LIST_SHA256, word_list


def test_words_are_bip_39s():
    content = (files("identity") / "words" / "english.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == WORD_LIST_SHA256
    assert len(word_list()) == len(set(word_list())) == 2_048
    assert (word_list()[0], word_list()[-1]) == ("abandon", "zoo")


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (bytes(32), "ride report transfer"),
        (b"\xff" * 32, "clock head tissue"),
        (bytes(range(32)), "six series kitchen"),
    ],
)
def test_names_are_the_same_for_ever(peer, name):
    assert peer_name(peer) == name


def test_20_000_peers_have_names_of_their_own():
    source = random.Random(1)
    assert len({peer_name(source.randbytes(32)) for _ in range(20_000)}) == 20_000
