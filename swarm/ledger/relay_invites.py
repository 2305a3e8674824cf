"""A relay's invites: whom it serves, if not everybody."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from identity.files import read_private_file
from swarm.errors import UsageError

MAX_INVITES_BYTES = 1 << 20
MIN_INVITE_CHARACTERS = 8  # shorter ones can be guessed by trying


class Invites:
    """The file of codes, read anew each time, so that its owner can add some."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, int]:
        """The uses of every code, by the code's digest. `IdentityError` if others can read the file."""
        found: dict[str, int] = {}
        text = read_private_file(self._path, MAX_INVITES_BYTES).decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            uses = words[1] if len(words) > 1 else "1"
            # Names the line, never the code.
            if len(words) > 2 or not (uses.isascii() and uses.isdigit()):
                raise UsageError(
                    f"{self._path}, line {number}: expected a code, then how often it may be used"
                )
            if len(words[0]) < MIN_INVITE_CHARACTERS:
                raise UsageError(
                    f"{self._path}, line {number}: a code needs {MIN_INVITE_CHARACTERS} characters or more"
                )
            found[_digest(words[0])] = int(uses)
        return found

    def find(self, code: str) -> tuple[str, int] | None:
        """A code's digest and uses; None if it is not in the file. Takes as long for any code."""
        given, found = _digest(code), None
        for digest, uses in self.read().items():
            if hmac.compare_digest(digest, given):
                found = digest, uses
        return found


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
