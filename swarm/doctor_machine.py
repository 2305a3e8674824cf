"""What `swarm doctor` looks at on this machine and on the ledger. Each check reads only, and may raise
`SwarmError`, `IdentityError` or `OSError`, which say what is wrong.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import time
from contextlib import closing
from importlib.metadata import PackageNotFoundError, requires, version

import msgspec

from identity import Identity, read_private_file
from swarm.diagnosis import Check, Patient, State, diagnosis
from swarm.errors import UsageError
from swarm.exchange.reach import check_free
from swarm.settings import Settings

KEY_PACKAGES = ("torch", "transformers", "trl", "hivemind", "web3")  # named if all is well; all are checked
FREE_BYTES_NEEDED = 2**28  # a few checkpoints of the tiny model
FREE_BYTES_WANTED = 2 * 2**30  # a full blob store, and as much again
CLOCK_SECONDS_WANTED = 15.0  # an honest chain's clock is behind by a block, 12 s on the slowest in use
REPORT_GAS = 60_000  # a round; README.md
ROUNDS_WANTED = 100
REQUEST_SECONDS = 10.0


# On this machine


def software(_: Patient) -> Check:
    """Python, and every package that swarm-rl asks for at a version that it works with."""
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, requires("swarm-rl") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                wrong.append(f"{requirement.name} {version(requirement.name)} is not {requirement.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
    if wrong:
        return diagnosis(
            "software", "failed", "; ".join(wrong), "run ./run_swarm.sh, which installs what is needed"
        )
    named = ", ".join(f"{package} {version(package)}" for package in KEY_PACKAGES)
    return diagnosis("software", "ok", f"Python {platform.python_version()}, {named}")


def sandbox(_: Patient) -> Check:
    """Whether this machine can keep what scores strangers' text from doing anything else."""
    from swarm.sandbox import check_sandbox

    problem = check_sandbox()
    if problem:
        return diagnosis(
            "sandbox",
            "warning",
            problem,
            "only swarms of the task arithmetic can be joined",
        )
    return diagnosis("sandbox", "ok", "strangers' text can be scored where it can do nothing else")


def home(patient: Patient) -> Check:
    """Whether the folder can be written to, and how much room there is."""
    path = patient.settings.home
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return diagnosis("home", "failed", f"{folder} cannot be written to", "choose another --home")
    free = shutil.disk_usage(folder).free
    found = f"{path}{'' if path.exists() else ' (to be made)'}, {free / 2**30:,.1f} GiB free"
    if free < FREE_BYTES_WANTED:
        state: State = "failed" if free < FREE_BYTES_NEEDED else "warning"
        return diagnosis("home", state, found, "make room, or choose another --home")
    return diagnosis("home", "ok", found)


def key(patient: Patient) -> Check:
    """`swarm.pem`: there, readable by its owner alone, and a key."""
    path = patient.settings.identity_path
    if not path.exists():
        return diagnosis("swarm.pem", "skipped", f"there is none in {path.parent}: `swarm join` makes one")
    patient.identity = Identity.load(path)
    return diagnosis("swarm.pem", "ok", f"{patient.identity.peer_id}, readable by you alone")


def journal(patient: Patient) -> Check:
    """`journal.sqlite`: whole, of this version and of this peer."""
    from identity.home import JOURNAL_FILE
    from identity.journal_store import APPLICATION_ID, VERSION

    path = patient.settings.home / JOURNAL_FILE
    if not path.exists():
        if patient.identity is None:
            return diagnosis("journal", "skipped", "there is none yet: `swarm join` makes one")
        return diagnosis(
            "journal",
            "warning",
            f"{path} is missing",
            "nothing: the node listens for a round before it speaks",
        )
    # SQLite writes beside a file that it only reads, unless told that nobody else has it open.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5)) as db:
            kind, form = (db.execute(f"PRAGMA {x}").fetchone()[0] for x in ("application_id", "user_version"))
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            owner = db.execute("SELECT peer FROM owner").fetchone()
            rounds = db.execute("SELECT count(DISTINCT round) FROM slots").fetchone()[0]
    except sqlite3.Error as error:
        verdict = str(error)
    advice = "restore it from a backup, or move it away: the node then listens for a round before it speaks"
    if verdict != "ok":
        return diagnosis("journal", "failed", f"{path} cannot be read: {verdict}", advice)
    if (kind, form) != (APPLICATION_ID, VERSION):
        return diagnosis("journal", "failed", f"{path} is not a journal of this version", advice)
    if patient.identity and owner and owner[0] != patient.identity.peer and rounds:
        return diagnosis(
            "journal",
            "failed",
            f"{path} is another peer's",
            "put that peer's swarm.pem back, or move it away",
        )
    return diagnosis("journal", "ok", f"speaks for {rounds} rounds")


def wallet(patient: Patient) -> Check:
    """`wallet.json`: opened with its stored password, if there is one. Asks for none."""
    from identity.home import PASSWORD_FILE
    from identity.keystore import MAX_BYTES, open_keystore, parse_keystore
    from identity.wallet import PASSWORD_BYTES, PASSWORD_VARIABLE, parse_password

    path = patient.settings.wallet_path
    if not path.exists():
        return diagnosis("wallet", "skipped", f"there is none in {path.parent}: `swarm join` makes one")
    keystore = parse_keystore(read_private_file(path, MAX_BYTES), str(path))
    password_file = path.with_name(PASSWORD_FILE)
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password and password_file.exists():
        password = parse_password(read_private_file(password_file, PASSWORD_BYTES), str(password_file))
    if not password:
        return diagnosis(
            "wallet", "ok", f"0x{keystore.address or '…'}; its password is asked for at each start"
        )
    return diagnosis("wallet", "ok", open_keystore(keystore, password, str(path)).address)


# The swarm and its ledger


def ledger(patient: Patient) -> Check:
    """Whether the swarm's contract is there; finds the bootnodes."""
    from swarm.ledger.client import LedgerClient
    from swarm.link import saved_facts

    if patient.line is None:
        return diagnosis("ledger", "skipped", _no_swarm(patient.settings))
    known = saved_facts(patient.settings, patient.line.address)
    ledger = LedgerClient(patient.line.rpc_url, patient.line.address)
    ledger.check()
    if known and (ledger.genesis, ledger.swarm_id) == (known.genesis, known.swarm_id):
        ledger = LedgerClient(patient.line.rpc_url, patient.line.address, known)
        ledger.check_chain()
    name = ledger.manifest().name
    patient.bootnodes = ledger.bootnodes()
    patient.ledger = ledger
    return diagnosis(
        "ledger", "ok", f"{ledger.host} serves {name} ({ledger.address}) on chain {ledger.chain_id}"
    )


def tasks(patient: Patient) -> Check:
    """Whether the swarm's tasks are installed as its manifest pins them."""
    from swarm.tasks.packages import check_packages

    if patient.ledger is None:
        return diagnosis("tasks", "skipped", _no_swarm(patient.settings))
    manifest = patient.ledger.manifest()
    names = ", ".join(choice.name for choice in manifest.tasks)
    try:
        check_packages(manifest)
    except UsageError as error:
        return diagnosis("tasks", "failed", names, str(error))
    return diagnosis("tasks", "ok", f"{names}, with {len(manifest.packages)} packages as pinned")


def clock(patient: Patient) -> Check:
    """This machine's clock against the ledger's."""
    if patient.ledger is None:
        return diagnosis("clock", "skipped", "no ledger to compare with")
    off = time.time() - patient.ledger.now()
    found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the ledger's"
    advice = "set this machine's clock, by NTP for example: a node goes by it while the ledger is away"
    if abs(off) > patient.ledger.round_seconds / 2:
        return diagnosis("clock", "failed", found, advice)
    if abs(off) > CLOCK_SECONDS_WANTED:
        return diagnosis("clock", "warning", found, f"{advice}; or the chain makes few blocks")
    return diagnosis("clock", "ok", found)


def funds(patient: Patient) -> Check:
    """Who pays: a gas relay that accepts, or an account with enough for a while."""
    relay_url = patient.settings.relay_url or (patient.line.relay_url if patient.line else None)
    if relay_url:
        return _gas_relay(patient, relay_url)
    if patient.ledger is None:
        return diagnosis("funds", "skipped", "no ledger to ask")
    from identity.keystore import MAX_BYTES, parse_keystore
    from swarm.ledger.fees import market
    from swarm.ledger.relay_budget import WEI_PER_ETHER

    path = patient.settings.wallet_path
    if not path.exists():
        return diagnosis("funds", "skipped", "no wallet yet")
    address = parse_keystore(read_private_file(path, MAX_BYTES), str(path)).address
    if address is None:
        return diagnosis("funds", "skipped", f"{path} does not say its address")
    balance = patient.ledger.rpc.balance(_checksummed(address))
    fees = market(patient.ledger.rpc, "a report")
    rounds = balance // (REPORT_GAS * fees.max_fee or 1)
    found = f"0x{address} has {balance / WEI_PER_ETHER:.6f} ether, enough for about {rounds:,} rounds"
    if rounds < ROUNDS_WANTED:
        advice = f"send 0x{address} some of chain {patient.ledger.chain_id}'s coin, or join with --relay URL"
        return diagnosis("funds", "warning" if rounds else "failed", found, advice)
    return diagnosis("funds", "ok", found)


def _gas_relay(patient: Patient, url: str) -> Check:
    import requests

    from swarm.ledger.http import BoundedAdapter
    from swarm.ledger.relay import Info

    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, BoundedAdapter())
        try:
            info = msgspec.json.decode(session.get(url, timeout=REQUEST_SECONDS).content, type=Info)
        except requests.RequestException:
            return diagnosis("gas relay", "failed", "it cannot be reached", "is the relay's URL right?")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return diagnosis(
                "gas relay", "failed", "what answers is not a relay", "is the relay's URL right?"
            )
    if patient.line and info.contract.lower() != patient.line.address.lower():
        return diagnosis(
            "gas relay", "failed", f"it pays for {info.contract}, another swarm", "use this swarm's relay"
        )
    if not info.accepting:
        return diagnosis("gas relay", "warning", f"it accepts nothing now: {info.reason}", "try again later")
    if info.invite_needed and not patient.settings.invite:
        return diagnosis("gas relay", "ok", "it pays, and new peers need an invite of its operator's")
    return diagnosis("gas relay", "ok", "it pays")


def _checksummed(address: str) -> str:
    from eth_utils import to_checksum_address

    return str(to_checksum_address(address))


def _no_swarm(settings: Settings) -> str:
    from swarm.ledger.facts import FACTS_FILE, read_facts
    from swarm.manifest import parse_canonical

    files = sorted(settings.swarms_dir.glob(f"*/{FACTS_FILE}"), key=lambda file: file.stat().st_mtime)
    facts = read_facts(files[-1]) if files else None
    if facts is None:
        return "no swarm was named: run `swarm doctor CONTRACT@RPC`"
    name = parse_canonical(facts.manifest, f"of {facts.address}").name
    return f"your last swarm is {name}: run `swarm doctor {facts.address}@RPC` with its RPC URL"


def ports(patient: Patient) -> Check:
    """Whether the ports to listen on are free."""
    if patient.running:
        return diagnosis("ports", "ok", "a node is running in this home, and has its own")
    for address in patient.reach.listen:
        check_free(address)
    free = "any free port" if patient.reach.any_port else "free"
    return diagnosis("ports", "ok", f"{', '.join(patient.reach.listen)} ({free})")
