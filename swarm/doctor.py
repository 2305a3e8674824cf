"""`swarm doctor`: looks at all that a peer on this machine needs, and says what is wrong and what to do.

It changes nothing: no key is made, no file opened for writing, and libp2p runs with a throwaway identity.
What cannot be looked at, because the machine is offline or no swarm was named, is skipped and says so.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import msgspec

from identity import IdentityError
from swarm import doctor_machine, doctor_network
from swarm.diagnosis import Check, Patient, diagnosis
from swarm.errors import SwarmError
from swarm.exchange.reach import reach_of
from swarm.ledger.join import parse_join_line
from swarm.settings import HOME_LOCK, Settings

LOCAL_SECONDS = 10.0
WALLET_SECONDS = 30.0  # a keystore is slow to open by design
LEDGER_SECONDS = 45.0  # a few requests of at most ten

_MACHINE_CHECKS: tuple[tuple[str, float, Callable[[Patient], Check]], ...] = (
    ("software", LOCAL_SECONDS, doctor_machine.software),
    ("sandbox", LOCAL_SECONDS, doctor_machine.sandbox),
    ("home", LOCAL_SECONDS, doctor_machine.home),
    ("swarm.pem", LOCAL_SECONDS, doctor_machine.key),
    ("journal", LOCAL_SECONDS, doctor_machine.journal),
    ("wallet", WALLET_SECONDS, doctor_machine.wallet),
    ("ledger", LEDGER_SECONDS, doctor_machine.ledger),
    ("tasks", LEDGER_SECONDS, doctor_machine.tasks),
    ("clock", LEDGER_SECONDS, doctor_machine.clock),
    ("funds", LEDGER_SECONDS, doctor_machine.funds),
    ("ports", LOCAL_SECONDS, doctor_machine.ports),
)
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def examine(
    settings: Settings, join_line: str | None, looking_at: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Every check in turn, each within its time; `looking_at` is told what comes next.

    `UsageError` at the first step if the join line or the settings are wrong.
    """
    line = parse_join_line(join_line) if join_line else None
    patient = Patient(
        settings=settings,
        line=line,
        # Without a swarm it may be one on this machine, where no port is opened.
        reach=reach_of(settings, line.rpc_url if line else "http://localhost"),
        running=_is_running(settings.home / HOME_LOCK),
    )
    for name, seconds, check in _MACHINE_CHECKS:
        looking_at(name)
        yield _limited(name, seconds, check, patient)
    looking_at("the network")
    yield from doctor_network.network(patient)


def show(settings: Settings, join_line: str | None) -> list[Check]:
    """Examine, and print each check as a line when it is done."""
    from rich.console import Console
    from rich.text import Text

    console, checks = Console(), []
    with console.status("") as status:  # a terminal shows it, a file does not
        for check in examine(settings, join_line, lambda name: status.update(f"looking at {name}")):
            checks.append(check)
            words = f"{check.found}: {check.advice}" if check.advice else check.found
            line = Text.assemble((f"{check.state:8}", _STYLES[check.state]), f"{check.name:14}{words}")
            console.print(line, soft_wrap=True)
    return checks


def as_json(checks: Sequence[Check]) -> str:
    """The same for scripts."""
    contents = {"ok": not any(check.state == "failed" for check in checks), "checks": checks}
    return msgspec.json.format(msgspec.json.encode(contents), indent=2).decode()


def _limited(name: str, seconds: float, check: Callable[[Patient], Check], patient: Patient) -> Check:
    """Run a check in a thread that is left behind if it takes too long."""
    outcome: Future[Check] = Future()

    def run() -> None:
        try:
            outcome.set_result(check(patient))
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            outcome.set_exception(error)

    Thread(target=run, daemon=True, name=f"doctor {name}").start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        return diagnosis(name, "failed", f"no answer within {seconds:.0f} s", "try again")
    except (SwarmError, IdentityError, OSError) as error:
        return diagnosis(name, "failed", str(error))


def _is_running(lock: Path) -> bool:
    """Whether a node holds the home; only reads, unlike a `FileLock`."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
