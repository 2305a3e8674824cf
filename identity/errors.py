"""Every error that `identity` raises.

IdentityError        one line: what is wrong, with what, what to do
├── SlotTaken        this slot signed something else already, or may have: nothing was signed
├── PeerRunning      another process on this machine is this peer
└── WrongPassword    the password does not open the file
"""


class IdentityError(Exception):
    """A key, journal, wallet or backup cannot be used; the message is one line for the user."""


class SlotTaken(IdentityError):
    """The journal does not let this digest be signed for this slot."""


class PeerRunning(IdentityError):
    """Another process on this machine holds the peer."""


class WrongPassword(IdentityError):
    """A keystore does not open with the password that was given."""
