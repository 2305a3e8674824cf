"""The rules of a swarm that tests join: one stage of short sums."""

from __future__ import annotations

from swarm.manifest import Manifest, parse


def small_manifest(name: str, round_seconds: int = 1000) -> Manifest:
    return parse(
        f"""
        name: {name}
        tasks: [{{name: arithmetic}}]
        models: [tiny]
        round_seconds: {round_seconds}
        group_size: 4
        stages: [{{name: answer, ends_at: 0.4, max_groups: 8, max_tokens: 8}}]
        learn: {{ends_at: 0.8, external_groups: 2, learning_rate: 1.0e-4}}
        """.encode(),
        "test",
    )
