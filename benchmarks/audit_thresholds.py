"""How far apart honest results lie, and how far cheats are from them: what swarm/verde/thresholds.py is from.

    python benchmarks/audit_thresholds.py                      # all tables, some 20 minutes on 2 cores
    python benchmarks/audit_thresholds.py --models tiny        # the shipped model alone

One process, *the peer*, samples, learns and writes down tokens, logits and states. Others, *auditors*, then
check these under other threads, instruction sets and batch shapes, each in a process of its own, as libraries
choose their code when they are loaded. Models: `tiny`; `random`, Qwen3-shaped with 26M random weights (wide
ones, so that its logits are as far apart as a trained model's); `lora`, an adapter on that. The peer's rounds
are the first (its moments are zero, so AdamW makes most of rounding) and a later one.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from small_model import small_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from swarm.learner.checkpoints import LearnerState
from swarm.learner.trainer import Learner, TrainingGroup
from swarm.manifest import Learn, Sampling
from swarm.policy import llama
from swarm.policy.decoder import ModelRows
from swarm.policy.devices import DTYPES, Precision
from swarm.policy.model import Policy
from swarm.policy.prefill import prefill
from swarm.policy.sampling import gumbel_noise, perturbed
from swarm.verde.build import Build
from swarm.verde.provenance import Claim, Mismatch, rederive
from swarm.verde.step import StepCheck, repeat_step
from swarm.verde.thresholds import step_limits, token_limits
from swarm.verde.verdicts import AuditClass

COMPLETIONS = 8
LOGIT_GROUPS = 4  # whose logits are compared
DRAWS = 500_000  # of tokens, from logits that differ by rounding
WARM_UP = 6  # updates before the later round
EVADED = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.25, 0.5)
ROUNDS = {"first": 0, "later": WARM_UP}

NUMBERS = ("share that differs", "relative", "scale", "worst", "moments")
DRAWN = ("model", "precision", "round", "auditor", "logits differ by", "of a million tokens", "worst gap")
STEP = ("model", "precision", "round", "auditor", *NUMBERS)
PROVENANCE_CHEATS = (
    "model",
    "precision",
    "cheat",
    "caught, tolerant",
    "audits of 8 groups that fail",
    "gaps: 1%, median",
    f"gaps up to {', '.join(map(str, EVADED))}",
)
STEP_CHEATS = ("model", "precision", "round", "cheat", *NUMBERS, "tolerant")


class Case(Struct, frozen=True, kw_only=True):
    """A model and how it is trained."""

    name: str
    folder: str
    lora: bool = False
    prompts: int  # of a round
    learned: int  # of these, how many are learned from
    max_tokens: int
    learn: Learn


class Setting(Struct, frozen=True, kw_only=True):
    """How an auditor computes."""

    name: str
    threads: int = 2
    at_once: int = 16_384
    environment: dict[str, str] = {}


class Job(Struct, frozen=True, kw_only=True):
    """What one process does."""

    case: Case
    precision: Precision
    setting: Setting
    work: str
    device: str = "cpu"


class Findings(Struct, kw_only=True):
    """What one auditor found of one round."""

    logits: dict[str, float] = {}  # the greatest difference from the peer's generation, by batch shape
    spread: float = 0.0  # deviation of the logits
    drawn: int = 0
    differing: int = 0
    gaps: list[float] = []
    sampled: int = 0  # tokens really sampled, and what was found of them
    mismatches: list[Mismatch] = []
    step: StepCheck | None = None


SETTINGS = (
    Setting(name="again, in another process"),
    Setting(name="1 thread", threads=1),
    Setting(name="micro-batches of a few rows", at_once=256),
    Setting(
        name="AVX2",
        environment={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    ),
    Setting(
        name="SSE, 1 thread, few rows",
        threads=1,
        at_once=256,
        environment={
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_CBWR": "COMPATIBLE",
        },
    ),
)


def make_model(folder: Path) -> None:
    """26M random weights, and a tokenizer whose words are `w0`, `w1`, …"""
    torch.manual_seed(0)
    words = 16_384
    config = small_config(
        vocab_size=words,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        initializer_range=0.12,
        eos_token_id=words - 2,
        pad_token_id=words - 1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    names = ["1+1=", "2+2=", *(f"w{index}" for index in range(2, words - 2))]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="w2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)


class Bench:
    """A model in one process, with its rounds."""

    def __init__(self, job: Job) -> None:
        self.job, self.case, self.work = job, job.case, Path(job.work)
        self.policy = Policy.load(
            job.case.folder,
            threads=job.setting.threads,
            device=job.device,
            precision=job.precision,
            lora=job.case.lora,
        )
        self.learner = Learner(
            self.policy, job.case.learn, COMPLETIONS, 1.0, job.case.max_tokens, self.work / "trl"
        )
        self.learner.max_tokens_at_once = job.setting.at_once
        self.build = Build(
            model=job.case.name,
            revision=None,
            lora=job.case.lora,
            four_bit=False,
            precision=job.precision,
            gradient_checkpointing=False,
            device="any",
            software="any",
            threads=job.setting.threads,
            learning_tokens_at_once=job.setting.at_once,
            sampling_tokens_at_once=32_768,
        )

    def prompts(self, number: int) -> list[list[int]]:
        """Questions of a round, of two lengths."""
        rng = random.Random(number)
        texts = []
        for index in range(self.case.prompts):
            if self.case.name == "tiny":
                question = f"{rng.randrange(100)}+{rng.randrange(100)}="
                texts.append(question if index % 4 else f"{question}\nA) {rng.randrange(200)}\nB) 13\nright?")
            else:
                length = 24 if index % 4 else 48
                texts.append(" ".join(f"w{rng.randrange(2, 16_000)}" for _ in range(length)))
        return [self.policy.encode_prompt(text) for text in texts]

    def reward(self, prompt: list[int], tokens: Sequence[int]) -> float:
        """Of the sum, if it is one; else of the tokens' digest."""
        if self.case.name != "tiny":
            return sha256(str(tokens).encode()).digest()[0] / 255
        text = self.policy.decode(prompt)
        left, _, right = text.rpartition("=")[0].rpartition("+")
        digits = "".join(itertools.takewhile(str.isdigit, reversed(left)))[::-1]
        return float(self.policy.decode(tokens) == str(int(digits or 0) + int(right or 0)))

    def sample(self, number: int, salt: str = "", sampling: Sampling = Sampling()) -> list[list[list[int]]]:  # noqa: B008
        """A round's completions."""
        return self.policy.sample(
            self.prompts(number),
            seeds_of(self.case.prompts, salt),
            max_tokens=self.case.max_tokens,
            sampling=sampling,
        )

    def batch(self, number: int, completions: Sequence[list[list[int]]]) -> list[TrainingGroup]:
        """What is learned from."""
        return [
            TrainingGroup(prompt, group, [self.reward(prompt, tokens) for tokens in group])
            for prompt, group in zip(self.prompts(number), completions, strict=True)
        ][: self.case.learned]

    def claims(self, number: int, completions: Sequence[list[list[int]]]) -> list[Claim]:
        """What is claimed of a round's completions."""
        return [
            Claim(prompt, group, [self.policy.decode(tokens) for tokens in group], seeds)
            for prompt, group, seeds in zip(
                self.prompts(number), completions, seeds_of(self.case.prompts), strict=True
            )
        ]

    def autocast(self) -> torch.autocast:
        """As the policy computes."""
        lower = self.policy.precision != "fp32"
        return torch.autocast(
            self.policy.device.type, DTYPES[self.policy.precision] if lower else None, enabled=lower
        )

    @torch.no_grad()
    def generated_logits(self, number: int) -> torch.Tensor:
        """What generation has for `forced` tokens, `[rows × tokens, V]`, on the CPU."""
        prompts, forced = self.prompts(number)[:LOGIT_GROUPS], self.forced()
        model = self.policy.model.eval()
        found = []
        with self.autocast():
            for prompt, group in zip(prompts, forced, strict=True):
                tokens = torch.tensor(group, device=self.policy.device)
                if llama.supports(model):
                    rows = llama.LlamaRows(
                        llama.LlamaDecoder(model), [prompt], COMPLETIONS, self.case.max_tokens
                    )
                else:
                    rows = ModelRows(model, [prompt], [COMPLETIONS])
                steps = [rows.logits, *(rows.step(tokens[:, t]) for t in range(tokens.shape[1] - 1))]
                found.append(torch.stack(steps, 1).flatten(0, 1).cpu())
        return torch.cat(found)

    def prefilled_logits(self, number: int, shape: str) -> torch.Tensor:
        """What an auditor has for them: from one batch, a group at a time, or padded by a long prompt."""
        prompts, forced = self.prompts(number)[:LOGIT_GROUPS], self.forced()
        groups = list(zip(prompts, forced, strict=True))
        batches = [[group] for group in groups] if shape == "one by one" else [groups]
        if shape == "padded":
            batches = [[*groups, (prompts[0] * 4, forced[0][:1])]]
        found = []
        with self.autocast():
            for batch in batches:
                rows = sum(len(completions) for _, completions in batch)
                logits: list[list[torch.Tensor]] = [[] for _ in range(rows)]
                for part in prefill(self.policy.model, batch):
                    order = zip(part.rows.tolist(), part.logits.cpu(), strict=True)
                    for row, one in order:
                        logits[row].append(one)
                found += [torch.stack(row) for row in logits[: len(forced) * COMPLETIONS]]
        return torch.cat(found)

    def forced(self) -> list[list[list[int]]]:
        """Tokens that are given to both, of full length: what follows an end too."""
        rng = random.Random(7)
        vocabulary = self.policy.model.get_output_embeddings().weight.shape[0]
        return [
            [[rng.randrange(vocabulary) for _ in range(self.case.max_tokens)] for _ in range(COMPLETIONS)]
            for _ in range(LOGIT_GROUPS)
        ]


def seeds_of(groups: int, salt: str = "") -> list[list[bytes]]:
    """One for each completion."""
    return [[sha256(f"{salt}{i} {g}".encode()).digest() for g in range(COMPLETIONS)] for i in range(groups)]


def copied(state: LearnerState) -> LearnerState:
    """A state as an auditor gets it."""
    parts = (
        {name: t.detach().cpu().clone() for name, t in part.items()}
        for part in (state.weights, state.optimizer)
    )
    return LearnerState(*parts)


def save_state(state: LearnerState, path: Path) -> None:
    """As two files."""
    save_file(dict(state.weights), f"{path}.weights")
    save_file(dict(state.optimizer), f"{path}.optimizer")


def load_state(path: Path) -> LearnerState:
    """See `save_state`."""
    return LearnerState(load_file(f"{path}.weights"), load_file(f"{path}.optimizer"))


# The peer


def play(bench: Bench) -> dict[str, str]:
    """Write down both rounds; the rows of the cheats' tables, by the table's name."""
    for number in range(WARM_UP + 1):
        name = next((name for name, one in ROUNDS.items() if one == number), None)
        completions = bench.sample(number)
        batch = bench.batch(number, completions)
        if name is None:
            bench.learner.update(batch)
            continue
        before = copied(bench.learner.state())
        save_state(before, bench.work / f"{name}-before")
        torch.save(bench.generated_logits(number), bench.work / f"{name}-logits.pt")
        (bench.work / f"{name}-tokens").write_bytes(msgspec.msgpack.encode(completions))
        bench.learner.update(batch)
        save_state(copied(bench.learner.state()), bench.work / f"{name}-after")
    return {
        "provenance": "\n".join(provenance_cheats(bench)),
        "step": "\n".join(step_cheats(bench, "later")),
    }


def provenance_cheats(bench: Bench) -> Iterator[str]:
    """Rows of what cheats look like, of the later round."""
    number = WARM_UP
    before, after = (load_state(bench.work / f"later-{which}") for which in ("before", "after"))
    completions = msgspec.msgpack.decode((bench.work / "later-tokens").read_bytes())
    bench.learner.restore(after)
    next_state = bench.sample(number)
    bench.learner.restore(before)
    others = bench.sample(number, salt="another seed")
    best = [
        [max(pair, key=lambda tokens: bench.reward(prompt, tokens)) for pair in zip(*groups, strict=True)]
        for prompt, *groups in zip(bench.prompts(number), completions, others, strict=True)
    ]
    limits = token_limits(AuditClass.TOLERANT, bench.job.precision)
    cheats = {
        "greedy": bench.sample(number, sampling=Sampling(temperature=1e-4)),
        "temperature 0.9": bench.sample(number, sampling=Sampling(temperature=0.9)),
        "another seed": others,
        "best of 2": best,
        "the state of one update later": next_state,
    }
    head = f"| {bench.case.name} | {bench.job.precision} |"
    gaps = edited(bench, number, completions)
    evaded = ", ".join(f"{sum(gap <= most for gap in gaps) / len(gaps):.2%}" for most in EVADED)
    caught = sum(gap > limits.gap for gap in gaps)
    yield f"{head} one token edited | {caught} of {len(gaps)} edits | | {spread_of(gaps)} | {evaded} |"
    for name, cheat in cheats.items():
        claims = bench.claims(number, cheat)
        per_audit = [
            rederive(bench.policy, claims[start : start + 8], Sampling(), bench.case.max_tokens)
            for start in range(0, len(claims), 8)
        ]
        changed = [
            (group, row)
            for group in range(len(claims))
            for row in range(COMPLETIONS)
            if cheat[group][row] != completions[group][row]
        ]
        found = [
            (8 * index + group, row)
            for index, one in enumerate(per_audit)
            for group, row in one.faulty(limits)
        ]
        caught = sum(place in set(found) for place in changed)
        gaps = [mismatch.gap for one in per_audit for mismatch in one.mismatches]
        failed = sum(bool(one.faulty(limits)) for one in per_audit)
        yield (
            f"{head} {name} | {caught} of {len(changed)} completions | "
            f"{failed} of {len(per_audit)} | {spread_of(gaps)} | |"
        )


def spread_of(gaps: Sequence[float]) -> str:
    """The first percentile and the median of those that were measured."""
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    return (
        f"{statistics.quantiles(gaps, n=100, method='inclusive')[0]:.2g}, {statistics.median(gaps):.1f}"
        if gaps[1:]
        else ""
    )


@torch.no_grad()
def edited(bench: Bench, number: int, completions: Sequence[list[list[int]]]) -> list[float]:
    """The gap of each edit: a token that stands at each place, instead of the one that was sampled.

    A digit by each other digit; where there are none, a token by one that the same text holds elsewhere.
    """
    rng = random.Random(1)
    digits = [bench.policy.encode_completion(str(digit))[0] for digit in range(10)]
    prompts, seeds = bench.prompts(number), [s for group in seeds_of(bench.case.prompts) for s in group]
    spoken = sorted({token for group in completions for tokens in group for token in tokens})
    gaps: list[float] = []
    with bench.autocast():
        for part in prefill(bench.policy.model, list(zip(prompts, completions, strict=True))):
            rows, positions = part.rows.tolist(), part.positions.tolist()
            values = perturbed(part.logits, [seeds[row] for row in rows], positions, Sampling())
            best = values.amax(-1).tolist()
            for index, token in enumerate(part.tokens.tolist()):
                if bench.case.name == "tiny":
                    others = [digit for digit in digits if digit != token] if token in digits else []
                else:
                    others = [one for one in rng.sample(spoken, 4) if one != token]
                gaps += [best[index] - float(values[index, other]) for other in others]
    return gaps


def step_cheats(bench: Bench, name: str) -> Iterator[str]:
    """Rows of what cheats look like, as a tolerant auditor sees them on the same machine."""
    before, after = (load_state(bench.work / f"{name}-{which}") for which in ("before", "after"))
    batch = bench.batch(ROUNDS[name], msgspec.msgpack.decode((bench.work / f"{name}-tokens").read_bytes()))
    largest = max(before.weights, key=lambda one: before.weights[one].numel())

    def nudged(by: float | None) -> LearnerState:
        changed = copied(after)
        weights = changed.weights[largest].view(-1)
        place = int(weights.abs().sort().indices[weights.numel() // 2])  # of the median size
        if by is None:
            weights[place] = torch.nextafter(weights[place], torch.tensor(torch.inf))
        else:
            weights[place] *= 1 + by
        return changed

    def played(groups: list[TrainingGroup], rate: float = 1.0, start: LearnerState = before) -> LearnerState:
        bench.learner.restore(start)
        for group in bench.learner._optimizer.param_groups:
            group["lr"] = bench.case.learn.learning_rate * rate
        bench.learner.update(groups)
        for group in bench.learner._optimizer.param_groups:
            group["lr"] = bench.case.learn.learning_rate
        return copied(bench.learner.state())

    # Rewards can be recomputed, but what was learned from only here.
    informative = next(index for index, group in enumerate(batch) if group.is_informative)
    before_it, it, after_it = batch[:informative], batch[informative], batch[informative + 1 :]
    turned = replace(it, rewards=[1 - reward for reward in it.rewards])
    stale = LearnerState(
        before.weights,
        {
            key: torch.zeros_like(tensor) if key.startswith("exp_avg") else tensor
            for key, tensor in before.optimizer.items()
        },
    )
    cheats = {
        "one weight nudged by its last bit": nudged(None),
        "one weight × (1 + 1e-4)": nudged(1e-4),
        "one weight × 1.01": nudged(1e-2),
        "one weight × 2": nudged(1.0),
        "learning rate × 1.01": played(batch, 1.01),
        "learning rate × 1.1": played(batch, 1.1),
        "no update, counters as if": LearnerState(
            before.weights,
            {
                key: after.optimizer[key] if "exp_avg" not in key else tensor
                for key, tensor in before.optimizer.items()
            },
        ),
        "a group left out": played([*before_it, *after_it]),
        "a group's rewards turned round": played([*before_it, turned, *after_it]),
        "moments begun anew": played(batch, start=stale),
    }
    limits = step_limits(AuditClass.TOLERANT, bench.job.precision)
    for cheat, claimed in cheats.items():
        found = repeat_step(bench.learner, bench.build, before, batch, claimed)
        verdict = "passes" if found.passes(limits) else "fails"
        head = f"| {bench.case.name} | {bench.job.precision} | {name} | {cheat} |"
        yield f"{head} {columns(found)} | {verdict} |"


# Auditors


def audit(bench: Bench) -> dict[str, Findings]:
    """Check what the peer has written down."""
    found = {}
    for name in ROUNDS:
        number = ROUNDS[name]
        before, after = (load_state(bench.work / f"{name}-{which}") for which in ("before", "after"))
        completions = msgspec.msgpack.decode((bench.work / f"{name}-tokens").read_bytes())
        bench.learner.restore(before)
        findings = Findings()
        peers = torch.load(bench.work / f"{name}-logits.pt")
        findings.spread = float(peers.std())
        for shape in ("together", "one by one", "padded"):
            logits = bench.prefilled_logits(number, shape)
            findings.logits[shape] = float((logits - peers).abs().max())
        draw(findings, peers, logits)
        result = rederive(bench.policy, bench.claims(number, completions), Sampling(), bench.case.max_tokens)
        if result.malformed:
            raise RuntimeError(f"honest completions are called malformed: {result.malformed[:3]}")
        findings.sampled, findings.mismatches = result.tokens, list(result.mismatches)
        batch = bench.batch(number, completions)
        findings.step = repeat_step(bench.learner, bench.build, before, batch, after)
        if findings.step.fault:
            raise RuntimeError(findings.step.fault)
        found[name] = findings
    return found


def draw(findings: Findings, peers: torch.Tensor, logits: torch.Tensor) -> None:
    """Choose from both with many seeds; where the choices differ, keep the gap that an auditor finds."""
    rows, vocabulary = logits.shape
    most = min(DRAWS, 2**30 // vocabulary)  # elements of noise
    for turn in range(-(-most // rows)):
        seeds = [sha256(f"{turn} {row}".encode()).digest() for row in range(rows)]
        noise = gumbel_noise(seeds, [0] * rows, vocabulary)
        theirs, values = (noise + peers).argmax(-1), noise.add_(logits)
        gaps = values.amax(-1) - values.gather(-1, theirs[:, None]).squeeze(-1)
        findings.gaps += gaps[gaps > 0].tolist()
        findings.drawn += rows
    findings.differing = len(findings.gaps)


def columns(found: StepCheck) -> str:
    """A step's numbers as a table's."""
    return (
        f"{found.differing / found.elements:.1e} | {found.relative:.1e} | {found.scale:+.1e} | "
        f"{found.worst:.1e} | {found.moments:.1e}"
    )


# The command


def cases(folder: Path, names: Sequence[str]) -> list[Case]:
    """The models that were asked for."""
    tiny = Learn(
        ends_at=0.9, external_groups=16, learning_rate=1.5e-4, epochs=2, groups_per_step=16
    )  # demo.yaml
    made = replace(tiny, learning_rate=1e-5, epochs=1, groups_per_step=4)
    rooms = [
        Case(name="tiny", folder="tiny", prompts=32, learned=32, max_tokens=8, learn=tiny),
        Case(name="random", folder=str(folder / "random"), prompts=8, learned=4, max_tokens=16, learn=made),
        Case(
            name="lora",
            folder=str(folder / "random"),
            lora=True,
            prompts=8,
            learned=4,
            max_tokens=16,
            learn=made,
        ),
    ]
    if set(names) & {"random", "lora"}:
        make_model(folder / "random")
    return [case for case in rooms if case.name in names]


def in_own_process(job: Job, role: str) -> bytes:
    """What a job printed."""
    # Before libraries are loaded. Threads that wait are not to keep others from working.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **job.setting.environment}
    command = [sys.executable, __file__, "--role", role]
    done = subprocess.run(
        command, input=msgspec.json.encode(job), env=environment, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.splitlines()[-1]


def tables(names: Sequence[str], precisions: Sequence[Precision], device: str, has_auditors: bool) -> None:
    """Measure and print."""
    began, load = time.monotonic(), os.getloadavg()[0]
    drawn, steps = [table(*DRAWN)], [table(*STEP)]
    cheats = {"provenance": table(*PROVENANCE_CHEATS), "step": table(*STEP_CHEATS)}
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(Path(temporary), names):
            for precision in precisions:
                work = Path(temporary) / f"{case.name}-{precision}"
                work.mkdir()
                job = Job(
                    case=case,
                    precision=precision,
                    setting=Setting(name="peer"),
                    work=str(work),
                    device=device,
                )
                rows = msgspec.json.decode(in_own_process(job, "peer"), type=dict[str, str])
                for kind, text in rows.items():
                    cheats[kind] += "\n" + text
                for setting in SETTINGS if has_auditors else ():
                    if setting.environment.get("ATEN_CPU_CAPABILITY") == "default" and (
                        precision != "fp32" and case.name != "tiny"
                    ):
                        continue  # without instructions for bf16 it takes too long
                    found = msgspec.json.decode(
                        in_own_process(replace(job, setting=setting), "auditor"), type=dict[str, Findings]
                    )
                    for name, one in found.items():
                        head = f"| {case.name} | {precision} | {name} | {setting.name} |"
                        gaps = one.gaps + [mismatch.gap for mismatch in one.mismatches]
                        logits = ", ".join(f"{value:.1e}" for value in one.logits.values())
                        rate = one.differing / one.drawn * 1e6
                        drawn.append(f"{head} {logits} | {rate:,.1f} | {max(gaps, default=0):.1e} |")
                        assert one.step is not None
                        steps.append(f"{head} {columns(one.step)} |")
                    print(*drawn[-2:], *steps[-2:], sep="\n", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - began:.0f} s, load {load:.1f} before\n")
    for text in ("\n".join(drawn), cheats["provenance"], "\n".join(steps), cheats["step"]):
        print(text, end="\n\n")


def table(*columns: str) -> str:
    """Its head."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=("tiny", "random", "lora"), default=["tiny", "random", "lora"]
    )
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cheats", action="store_true", help="their tables alone")
    parser.add_argument("--role", choices=("peer", "auditor"), help="for the processes that this starts")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if arguments.role is None:
        tables(arguments.models, arguments.precisions, arguments.device, not arguments.cheats)
        return
    bench = Bench(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    found = play(bench) if arguments.role == "peer" else audit(bench)
    print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    main()
