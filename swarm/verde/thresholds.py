"""How far honest results may lie apart, by the class of an audit and the precision; measured, not guessed.

Every number is from the tables that `benchmarks/audit_thresholds.py` prints (benchmarks/README.md, "Audits:
what honest differences look like").
"""

from __future__ import annotations

import math

from msgspec import Struct

from swarm.verde.verdicts import AuditClass


class TokenLimits(Struct, frozen=True):
    """What re-derived completions may differ in.

    Attributes:
        gap: a token may differ where it lies so near to the perturbed maximum.
        share: of the tokens, may so differ; two in any case.
    """

    gap: float
    share: float

    def near_allowed(self, tokens: int) -> int:
        """How many of so many tokens may differ by small gaps."""
        return 2 + math.ceil(self.share * tokens)


class StepLimits(Struct, frozen=True):
    """What a repeated update may differ in; for the quantities see `swarm.verde.step.StepCheck`.

    Attributes:
        bitwise: in nothing, if it could be repeated exactly; else the others count.
    """

    bitwise: bool
    relative: float
    scale: float
    worst: float
    moments: float


def token_limits(audit_class: AuditClass, precision: str) -> TokenLimits:
    """For provenance, in an audit of this class of a peer that computes in this precision."""
    return TokenLimits(gap={"fp32": 1e-3, "bf16": 0.25, "fp16": 0.05}[precision], share=1e-3)


def step_limits(audit_class: AuditClass, precision: str) -> StepLimits:
    """For a step, in an audit of this class of a peer that computes in this precision."""
    return StepLimits(audit_class != AuditClass.TOLERANT, 1e-3, 1e-3, 0.1, 1e-3)
