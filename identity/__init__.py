"""Who a peer is: its `swarm.pem` key, wallet and name. Imports nothing of `swarm`."""

from identity.errors import IdentityError
from identity.key import Identity, PublicKey, peer_digest, peer_id_text
from identity.names import peer_name
from identity.wallet import load_or_create_wallet

__all__ = [
    "Identity",
    "IdentityError",
    "PublicKey",
    "load_or_create_wallet",
    "peer_digest",
    "peer_id_text",
    "peer_name",
]
