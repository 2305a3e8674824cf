"""How far honest results may lie apart, by the class of an audit and the precision; measured, not guessed.

Every number is from the tables that `benchmarks/audit_thresholds.py` prints (benchmarks/README.md, "Audits:
what honest differences look like"): several times what honest machines differ by, and under what cheats that
pay differ by. The classes share them. Tokens are generated and checked in batches of other shapes, which are
rounded otherwise on one machine too; and an update that could not be repeated exactly, for want of memory, is
judged as if it came from another machine. fp16 is not measured, since no CPU trains in it: its mantissa has
three bits more than bf16's, so its limits could be an eighth, and are a fifth to be on the safe side.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from swarm.verde.verdicts import AuditClass


class TokenLimits(Struct, frozen=True):
    """What re-derived completions may differ in.

    Attributes:
        gap: in logits, how near to being chosen a token that differs must be (`swarm.verde.gaps`).
        share: of the tokens, may so differ; two in any case, but none where it is 0.
    """

    gap: float
    share: float

    def near_allowed(self, tokens: int) -> int:
        """How many of so many tokens may differ by small gaps."""
        return 2 + math.ceil(self.share * tokens) if self.share else 0


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


# Logits differed by at most 5e-5 in fp32 and 0.3 in bf16, and the worst gaps were 4e-6 and 0.22. Of a million
# tokens 2 differed in fp32, and 22,000 in bf16 where many tokens are about equally likely.
_TOKENS = {
    "fp32": TokenLimits(gap=2e-3, share=1e-3),
    "fp16": TokenLimits(gap=0.1, share=0.01),
    "bf16": TokenLimits(gap=0.5, share=0.05),
}
# Honest machines differ most in the first update, whose moments are those of one gradient: by 6e-4 of it in
# fp32 and 0.21 in bf16. A weight whose gradient is near zero may go either way there, and end twice the
# learning rate from another machine's.
_STEPS = {
    "fp32": StepLimits(bitwise=False, relative=5e-3, scale=1e-3, worst=2.5, moments=1e-4),
    "fp16": StepLimits(bitwise=False, relative=0.1, scale=0.02, worst=4.0, moments=0.1),
    "bf16": StepLimits(bitwise=False, relative=0.5, scale=0.05, worst=4.0, moments=0.5),
}


def token_limits(audit_class: AuditClass, precision: str) -> TokenLimits:
    """For provenance and screening, of a peer that computes in this precision; one of `Build`'s."""
    return TokenLimits(0.0, 0.0) if audit_class is AuditClass.EXACT else _TOKENS[precision]


def step_limits(audit_class: AuditClass, precision: str) -> StepLimits:
    """For a step, of a peer that computes in this precision."""
    return replace(_STEPS[precision], bitwise=audit_class is not AuditClass.TOLERANT)
