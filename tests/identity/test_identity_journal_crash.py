"""The journal under what processes suffer: kill -9, a full disk, another process on the same file."""

import os
import random
import select
import subprocess
import sys
from collections import defaultdict

import pytest

from identity import IdentityError, Journal, Slot, create_identity, open_identity

# Claims random slots with digests of its own and prints each before it "uses" it.
SIGNER = """
import os, sys
from pathlib import Path
from identity import Journal, Slot, SlotTaken
journal = Journal.open(Path(sys.argv[1]), bytes(32))
while True:
    slot, digest = Slot("swarm", os.urandom(1)[0], os.urandom(1)[0] % 2), os.urandom(32)
    try:
        journal.claim(slot, digest)
    except SlotTaken:
        os.write(1, b"taken\\n")
    else:
        os.write(1, f"{slot.round} {slot.stage} {digest.hex()}\\n".encode())
"""


def start_signer(path):
    return subprocess.Popen([sys.executable, "-c", SIGNER, str(path)], stdout=subprocess.PIPE)


def read_lines(signers, count):
    """Read until there are `count` lines of all signers together, then kill them and read on to the end."""
    read = {signer.stdout.fileno(): b"" for signer in signers}
    while sum(text.count(b"\n") for text in read.values()) < count:
        for descriptor in select.select(list(read), [], [])[0]:
            text = os.read(descriptor, 65_536)
            assert text, "a signer ended by itself"
            read[descriptor] += text
    for signer in signers:
        signer.kill()
    for signer in signers:
        read[signer.stdout.fileno()] += signer.stdout.read()
        signer.wait()
        signer.stdout.close()
    return [line for text in read.values() for line in text.split(b"\n")[:-1] if line != b"taken"]


def test_no_slot_has_two_digests_over_many_kills_and_two_processes_at_once(tmp_path):
    path = tmp_path / "journal.sqlite"
    Journal.create(path, bytes(32)).close()
    random_source, digests = random.Random(5), defaultdict(set)
    for _ in range(6):
        signers = [start_signer(path), start_signer(path)]
        for line in read_lines(signers, random_source.randint(1, 150)):
            round, stage, digest = line.split()
            digests[round, stage].add(digest)
    assert len(digests) > 100
    assert all(len(of_slot) == 1 for of_slot in digests.values())
    journal = Journal.open(path, bytes(32))
    for (round, stage), of_slot in digests.items():
        journal.claim(Slot("swarm", int(round), int(stage)), bytes.fromhex(of_slot.pop().decode()))
    journal.close()


# Signs until it cannot, with files limited to a size that the log soon reaches.
FULL_DISK = """
import resource, sys
from pathlib import Path
from identity import IdentityError, Slot, SlotTaken, open_identity
identity, journal = open_identity(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for round in range(10_000):
    try:
        signature = journal.sign(identity, Slot("swarm", round, 0), b"message")
    except IdentityError as error:
        assert not isinstance(error, SlotTaken)
        print(round, error)
        break
"""


def test_full_disk_lets_no_signature_out(tmp_path):
    identity, journal = create_identity(tmp_path)
    journal.close()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    failed, message = done.stdout.strip().split(" ", 1)
    assert "nothing was signed" in message and "\n" not in message
    journal = open_identity(tmp_path)[1]
    assert journal.last_round("swarm") == int(failed) - 1 > 10
    assert identity.public_key.verify(b"x", journal.sign(identity, Slot("swarm", int(failed), 0), b"x"))
    journal.close()


def test_journal_that_another_process_holds_for_long_is_an_error_and_no_signature(tmp_path, monkeypatch):
    monkeypatch.setattr("identity.journal_store.BUSY_SECONDS", 0.05)
    journal = Journal.create(tmp_path / "journal.sqlite", bytes(32))
    other = Journal.open(journal.path, bytes(32))
    with other._store.writing(), pytest.raises(IdentityError, match="locked; nothing was signed"):
        journal.claim(Slot("swarm", 0, 0), bytes(32))
    assert journal.last_round("swarm") == -1
    journal.claim(Slot("swarm", 0, 0), bytes(32))
    for each in (journal, other):
        each.close()
