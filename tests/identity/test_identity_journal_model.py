"""Random histories of two journals of one peer, against a model in a dictionary."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from identity import Journal, Slot, SlotTaken

PEER = bytes(32)
KEPT = 3
WHICH = st.sampled_from((0, 1))
SLOTS = st.builds(Slot, st.sampled_from("ab"), st.integers(0, 7), st.integers(0, 1))
DIGESTS = st.sampled_from([bytes([i]) * 32 for i in range(3)])


class SmallJournal(Journal):
    kept_rounds = KEPT


class Model:
    """What a journal should hold: digests (None = tombstone) by slot, and watermarks by scope."""

    def __init__(self):
        self.slots, self.watermarks, self.imported = {}, {}, False

    def raise_watermark(self, scope, watermark):
        if watermark > self.watermarks.get(scope, -1):
            self.watermarks[scope] = watermark
        kept = self.watermarks.get(scope, -1)
        self.slots = {s: d for s, d in self.slots.items() if s.scope != scope or s.round > kept}

    def prune(self, scope):
        rounds = sorted({s.round for s in self.slots if s.scope == scope})
        if len(rounds) > KEPT:
            self.raise_watermark(scope, rounds[-KEPT] - 1)

    def claim(self, slot, digest):
        if slot in self.slots:
            return self.slots[slot] == digest
        if slot.round <= self.watermarks.get(slot.scope, -1):
            return False
        self.slots[slot] = digest
        self.prune(slot.scope)
        return True

    def merge(self, other):
        new = 0
        for scope in sorted({s.scope for s in other.slots} | set(other.watermarks)):
            self.raise_watermark(scope, other.watermarks.get(scope, -1))
            for slot, digest in other.slots.items():
                if slot.scope == scope and slot.round > self.watermarks.get(scope, -1):
                    new += slot not in self.slots
                    self.slots[slot] = digest if self.slots.get(slot, digest) == digest else None
            self.prune(scope)
        self.imported = True
        return new

    def last_round(self, scope):
        return max([self.watermarks.get(scope, -1), *(s.round for s in self.slots if s.scope == scope)])


class JournalHistory(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.journals = [SmallJournal.create(self.folder / f"{i}.sqlite", PEER) for i in range(2)]
        self.models = [Model(), Model()]
        self.signed = [{}, {}]
        self.left = []  # connections of "killed" processes: never closed while the history runs

    @rule(which=WHICH, slot=SLOTS, digest=DIGESTS)
    def claim(self, which, slot, digest):
        try:
            self.journals[which].claim(slot, digest)
            accepted = True
        except SlotTaken:
            accepted = False
        assert accepted == self.models[which].claim(slot, digest)
        if accepted:
            assert self.signed[which].setdefault(slot, digest) == digest

    @rule(which=WHICH)
    def reopen(self, which):
        self.journals[which].close()
        self.journals[which] = SmallJournal.open(self.journals[which].path, PEER)

    @rule(which=WHICH)
    def crash(self, which):
        self.left.append(self.journals[which])
        self.journals[which] = SmallJournal.open(self.journals[which].path, PEER)

    @rule(source=WHICH)
    def carry_over(self, source):
        target = 1 - source
        new = self.journals[target].import_(self.journals[source].export())
        assert new == self.models[target].merge(self.models[source])

    @invariant()
    def journals_agree_with_their_models(self):
        for journal, model in zip(self.journals, self.models, strict=True):
            for scope in "ab":
                assert journal.last_round(scope) == model.last_round(scope)
                reason = journal.reason_to_listen(scope, 7, 100)
                assert reason == ("imported" if model.imported else None)

    def teardown(self):
        for journal in (*self.journals, *self.left):
            journal.close()
        shutil.rmtree(self.folder)


JournalHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestJournalHistory = JournalHistory.TestCase
