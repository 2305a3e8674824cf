"""Who a peer is: its `swarm.pem` key, journal, wallet and name. Imports nothing of `swarm`."""

from identity.backup import BackupContents, collect_backup, read_backup, restore_backup, write_backup
from identity.errors import IdentityError, PeerRunning, SlotTaken, WrongPassword
from identity.files import read_private_file, write_private_file
from identity.hold import PeerHold, hold_peer
from identity.home import create_identity, load_or_create_identity, open_identity
from identity.interchange import Slot, read_journal_file
from identity.journal import Journal
from identity.key import Identity, PublicKey, peer_digest, peer_id_text
from identity.names import peer_name
from identity.proofs import registration_message, rotation_message
from identity.rotation import adopt_successor, prepare_successor
from identity.wallet import import_wallet, load_or_create_wallet

__all__ = [
    "BackupContents",
    "Identity",
    "IdentityError",
    "Journal",
    "PeerHold",
    "PeerRunning",
    "PublicKey",
    "Slot",
    "SlotTaken",
    "WrongPassword",
    "adopt_successor",
    "collect_backup",
    "create_identity",
    "hold_peer",
    "import_wallet",
    "load_or_create_identity",
    "load_or_create_wallet",
    "open_identity",
    "peer_digest",
    "peer_id_text",
    "peer_name",
    "prepare_successor",
    "read_backup",
    "read_journal_file",
    "read_private_file",
    "registration_message",
    "restore_backup",
    "rotation_message",
    "write_backup",
    "write_private_file",
]
