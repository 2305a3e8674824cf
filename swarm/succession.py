"""What a peer brings from the predecessor of a swarm: its last state there, if the manifest keeps states.

The chain of states goes on: the first report in the new swarm names as its state before what the last report
in the old one named as its state after.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swarm.errors import ModelError
from swarm.manifest import Manifest
from swarm.policy.plan import Plan, read_plan
from swarm.records import Records
from swarm.settings import Settings

log = logging.getLogger("swarm.node")


@dataclass(frozen=True)
class Inheritance:
    """A peer's part in the predecessor."""

    plan: Plan  # what was trained there
    checkpoints: Path
    recorded: frozenset[int]  # rounds whose states were reported


def inheritance(settings: Settings, manifest: Manifest) -> Inheritance | None:
    """What there is to bring along; None if the manifest keeps no states or this peer has none of use.

    Where the predecessor was on several ledgers, the folder that was written to last counts.
    """
    before = manifest.predecessor
    if before is None or "states" not in before.keep:
        return None
    folders = [
        folder
        for folder in settings.swarms_dir.glob(f"{before.swarm[:12]}-*")
        if (folder / "state.sqlite").is_file()
    ]
    if not folders:
        log.info("no state of the predecessor here swarm=%s", before.swarm[:12])
        return None
    folder = max(folders, key=lambda one: (one / "state.sqlite").stat().st_mtime)
    try:
        plan = read_plan(folder / "plan.json")
        with closing(Records(folder / "state.sqlite", read_only=True)) as records:
            recorded = (
                frozenset(record.round for record in records.rounds()) if records.exist else frozenset()
            )
    except (ModelError, sqlite3.Error, msgspec.MsgspecError) as error:
        log.warning("state of the predecessor cannot be read folder=%s error=%r", folder, str(error))
        return None
    if plan is None or plan.model not in manifest.models:
        log.warning(
            "state of the predecessor is of a model that this swarm does not allow model=%s",
            plan.model if plan else None,
        )
        return None
    return Inheritance(plan, folder / "checkpoints", recorded)
