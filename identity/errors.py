"""The one error that `identity` raises."""


class IdentityError(Exception):
    """A key, wallet or proof cannot be used; the message is one line: what, with what, what to do."""
