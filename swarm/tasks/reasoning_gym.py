"""The puzzles of the package reasoning-gym, 97 kinds of them, mixed as the manifest says.

    datasets:
      - {name: chain_sum, weight: 2, config: {min_terms: 2}}
      - {name: leg_counting, levels: [0, 1], level_weights: [3, 1]}

A dataset is made once and asked for the entry of an index that comes from the seed. Where the package would
draw differently in another process, or after other draws, it is helped (`_ADAPT`) or refused (`UNFIT`).

Its scorers were not written for hostile text. These run an answer as Python, by `eval` or by sympy's
`parse_expr`: binary_matrix, countdown, n_queens, polynomial_multiplication, puzzle24, simple_integration,
spiral_matrix, string_insertion. So this task is not harmless, and `_refused` turns away what no right answer
to those looks like before they see it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import math
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from swarm.errors import UsageError
from swarm.tasks.base import Question, Task
from swarm.tasks.prompts import answered, final_answer

# Datasets that no manifest may name, and why.
UNFIT: dict[str, str] = {
    "codeio": "drawing runs code samples that import modules and use the process's own random numbers",
    "coin_flip": "its scorer takes 0 for any small probability",
    "composite": "it mixes other datasets; list those instead",
    "futoshiki": "some entries take seconds to draw",
    "game_of_life_halting": "its scorer finds any text right",
    "intermediate_integration": "its scorer takes an unevaluated Integral(…) for an answer",
    "knight_swap": "some entries take seconds to draw",
    "rush_hour": "it gives no solutions",
    "sokoban": "some entries take seconds to draw",
}
_NO_ANSWER = {  # where the package gives no answer but keeps one elsewhere
    "boxnet": lambda data: _boxnet_plan(data),
    "graph_color": lambda data: json.dumps(data["possible_answer"]),
    "propositional_logic": lambda data: data["example_answer"],
    "rubiks_cube": lambda data: data["example_correct_answer"],
}
_ATTEMPTS = 100  # entries that are tried until one can be made and its answer is right
_INDICES = {"pool_matrix": 2**32, "acre": 500}  # numpy's seeds; entries made in advance. Else 2⁶²
_LEVELS = {"bf": 2, "jugs": 2, "zebra_puzzles": 3}  # at higher ones, drawing takes from 0.8 s to for ever

_EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
_NUMBERS = {"countdown", "puzzle24"}
_FORMULAS = {"polynomial_multiplication", "simple_integration"}
_WORDS = re.compile(r"[\w\s]*")  # no call, no brackets, no operator
_SUM = re.compile(r"[\d\s+*/().-]*")
_FORMULA = re.compile(r"[\w\s+*/^().-]*")
_WORD = re.compile(r"[^\W\d]\w*")
_POWER = re.compile(r"\*\*|\^")
_SMALL_POWER = re.compile(r"(?:\*\*|\^)\s*(?:\d{1,2}|\(\s*\d{1,2}\s*\))(?![\w.]|\s*(?:\*\*|\^))")
_LARGE = re.compile(r"\)\s*(?:\*\*|\^)\s*\(?\s*\d\d|[\d.][eE]")  # (…)**99, 1e999
_NO_NUMBER = re.compile(r"(?<![^\W\d_])(?:nan|inf|infinity)(?![^\W\d_])", re.IGNORECASE)
_POWER_OF_SUM = re.compile(r"\)\s*(?:\*\*|\^)")


class Choice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One dataset of a mixture."""

    name: Annotated[str, Meta(description="The dataset's name in reasoning-gym.")]
    weight: Annotated[int, Meta(ge=1, le=10**6, description="How often it is drawn, beside the others.")] = 1
    config: Annotated[
        dict[str, Any], Meta(description="The dataset's own parameters; they go before those of a level.")
    ] = {}
    levels: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=1000)], ...],
        Meta(
            max_length=64, description="Levels of the package's curriculum, one of which is drawn each time."
        ),
    ] = ()
    level_weights: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=10**6)], ...],
        Meta(description="How often each level is drawn, beside the others; equally often if left out."),
    ] = ()


class _Source(Struct, frozen=True):
    """A dataset with one configuration."""

    name: str
    dataset: Any

    def entry(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = self.dataset[index % _INDICES.get(self.name, 2**62)]
        return entry

    def reference(self, entry: dict[str, Any]) -> str:
        if self.name in _NO_ANSWER:
            return str(_NO_ANSWER[self.name](entry["metadata"]))
        return str(entry["answer"])


class _Drawn(Struct, frozen=True):
    source: _Source
    entry: dict[str, Any]
    longest: int  # characters of an answer that can still be right


class ReasoningGym(Task, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A mixture of reasoning-gym's datasets."""

    summary: ClassVar[str] = "97 kinds of puzzles of reasoning-gym, mixed, with levels of difficulty"
    example: ClassVar[dict[str, object]] = {"datasets": [{"name": "chain_sum"}, {"name": "leg_counting"}]}
    # The others that it uses it asks for at exact versions.
    packages: ClassVar[tuple[str, ...]] = ("reasoning-gym", "numpy", "pytz", "sympy")

    datasets: Annotated[
        tuple[Choice, ...], Meta(min_length=1, max_length=256, description="The datasets that are mixed.")
    ]
    partial: Annotated[
        bool, Meta(description="Whether an answer that is not fully right keeps the package's partial score.")
    ] = False

    @classmethod
    def catalogue(cls) -> list[str]:
        """The datasets, each with its levels."""
        return [f"{name}: levels 0 to {levels_of(name) - 1}" for name in dataset_names()]

    def prepare(self) -> None:
        """Make every dataset, and draw and score once with each, so that nothing is left to load."""
        for _, sources in self._mixture:
            for _, source in sources:
                question = self._question(source, 0)
                self.score(question, answered("[1]"))  # a wrong answer takes other ways

    def draw(self, seed: bytes) -> Question:
        """Eight bytes of the seed each choose the dataset, the level and the entry."""
        sources = _pick(self._mixture, int.from_bytes(seed[:8], "big"))
        source = _pick(sources, int.from_bytes(seed[8:16], "big"))
        return self._question(source, int.from_bytes(seed[16:24], "big"))

    def score(self, question: Question, completion: str) -> float:
        """The package's score of the final answer, in [0, 1]; without `partial`, 1 or 0."""
        drawn = question.data
        if not isinstance(drawn, _Drawn):
            raise TypeError("the question was not drawn by this task")
        answer = final_answer(completion)
        if len(answer) > drawn.longest or _refused(drawn.source.name, answer, drawn.entry):
            return 0.0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                score = float(drawn.source.dataset.score_answer(answer=answer, entry=drawn.entry))
        except Exception:  # noqa: BLE001  the text made the scorer fail, so it is no right answer
            return 0.0
        if not self.partial:
            return float(score >= 1.0)
        return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0

    def _question(self, source: _Source, index: int) -> Question:
        """The entry of the index, or the first after it that can be made, with an own answer that is right.

        Some are not so: in propositional_logic and string_manipulation it is now and then wrong, or empty.
        """
        failure = "it finds its own answers wrong"
        for attempt in range(_ATTEMPTS):
            try:
                entry = source.entry(index + attempt)
                reference = source.reference(entry)
            except Exception as error:  # noqa: BLE001  countdown and others give up on some entries
                failure = _said(error)
                continue
            drawn = _Drawn(source, entry, longest=200 + 4 * len(reference))
            question = Question(text=entry["question"], answer=answered(reference), data=drawn)
            if final_answer(question.answer) and self.score(question, question.answer) == 1.0:
                return question
        raise UsageError(f"reasoning_gym: {source.name} cannot be drawn with this config: {failure}")

    @cached_property
    def _mixture(self) -> list[tuple[int, list[tuple[int, _Source]]]]:
        """Weighted datasets, each a list of its weighted levels."""
        return [(choice.weight, _sources(choice)) for choice in self.datasets]


def dataset_names() -> list[str]:
    """Every dataset that a manifest may name."""
    return sorted(set(_registry().DATASETS) - set(UNFIT))


def levels_of(name: str) -> int:
    """How many levels of a dataset's curriculum can be used; 0 if it has none."""
    curriculum = _registry().CURRICULA.get(name)
    attributes = curriculum().attributes.values() if curriculum else ()
    count = max((len(attribute.levels) for attribute in attributes), default=0)
    return min(count, _LEVELS.get(name, count))


def _registry() -> Any:
    # Loads all of the package, which its own __init__ does anyway (1 s, 100 MB).
    try:
        importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise UsageError(
            f"task reasoning_gym needs a package that is not here ({error.name}): "
            ".venv/bin/pip install --constraint constraints.txt reasoning-gym, with a C compiler at hand"
        ) from error
    return importlib.import_module("reasoning_gym.factory")


def _pick(weighted: Sequence[tuple[int, Any]], number: int) -> Any:
    """By weight; the bias is under 2⁻³⁶ for the largest mixture."""
    number %= sum(weight for weight, _ in weighted)
    for weight, item in weighted:
        if number < weight:
            return item
        number -= weight
    raise AssertionError("weights are positive")


def _sources(choice: Choice) -> list[tuple[int, _Source]]:
    name = choice.name
    if name in UNFIT:
        raise UsageError(f"reasoning_gym: dataset {name} cannot be used: {UNFIT[name]}")
    known = dataset_names()
    if name not in known:
        raise UsageError(f"reasoning_gym: no dataset is called {name!r}; {_closest(name, known)}")
    if choice.level_weights and len(choice.level_weights) != len(choice.levels):
        raise UsageError(
            f"reasoning_gym: {name} has {len(choice.level_weights)} level_weights for "
            f"{len(choice.levels)} levels"
        )
    weights = choice.level_weights or (1,) * max(1, len(choice.levels))
    levels: Iterable[int | None] = choice.levels or (None,)
    return [(weight, _source(choice, level)) for weight, level in zip(weights, levels, strict=True)]


def _source(choice: Choice, level: int | None) -> _Source:
    name = choice.name
    dataset_class, config_class = _registry().DATASETS[name]
    allowed = {field.name for field in fields(config_class)} - {"seed", "size"}
    for key in choice.config:
        if key not in allowed:
            raise UsageError(f"reasoning_gym: {name} has no config {key!r}; {_closest(key, sorted(allowed))}")
    try:
        config = _of_level(name, config_class, level)
        given = {
            key: tuple(value)
            if isinstance(value, list) and isinstance(getattr(config, key), tuple)
            else value
            for key, value in choice.config.items()
        }
        dataset = dataset_class(config=replace(config, **given, seed=0, size=500))
    except UsageError:
        raise
    except Exception as error:  # the package checks by asserts, and by failing
        at = "" if level is None else f" at level {level}"
        raise UsageError(f"reasoning_gym: {name}{at} refuses its config: {_said(error)}") from error
    if name in _WITH_SYMPY:
        _load_sympy()
    if name in _ADAPT:
        _ADAPT[name](dataset)
    return _Source(name, dataset)


def _of_level(name: str, config_class: Any, level: int | None) -> Any:
    """The configuration of a curriculum with all attributes at a level, or at their last below it."""
    if level is None:
        return config_class()
    count = levels_of(name)
    if level >= count:
        allowed = f"it has 0 to {count - 1}" if count else "it has no levels"
        raise UsageError(f"reasoning_gym: {name} has no level {level}; {allowed}")
    curriculum = _registry().CURRICULA[name]()
    curriculum.set_global_level(level)
    return curriculum.generate_configuration()


def _closest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"closest: {', '.join(close)}"
    return f"there is: {', '.join(known)}" if len(known) <= 20 else f"there are {len(known)}"


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refused(name: str, answer: str, entry: dict[str, Any]) -> bool:
    """Whether an answer cannot be right and might be code, work without end, or compare oddly."""
    if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(str(entry["answer"])):
        return True  # min(1.0, nan) is 1.0 in complex_arithmetic's scorer
    if name in _EVALUATED:
        return not _WORDS.fullmatch(answer) and not _is_literal(answer)
    if name in _NUMBERS:
        if not _SUM.fullmatch(answer) or "**" in answer or "//" in answer:
            return True
        # puzzle24 itself does not look whether these are the numbers that it gave.
        return sorted(re.findall(r"\d+", answer)) != sorted(str(n) for n in entry["metadata"]["numbers"])
    if name in _FORMULAS:
        names = set(_WORD.findall(entry["answer"]))
        return (
            not _FORMULA.fullmatch(answer)
            or any(len(word) > 1 and word not in names for word in _WORD.findall(answer))
            or len(_POWER.findall(answer)) != len(_SMALL_POWER.findall(answer))
            or len(_POWER_OF_SUM.findall(answer)) > 2
            or _LARGE.search(answer) is not None
        )
    if name == "rubiks_cube":
        return bool(re.search(r"\d{2}", answer))  # "U99999999" is a move that often
    return False


def _is_literal(text: str) -> bool:
    """Whether Python would read it as lists, strings and numbers: then evaluating it does nothing else."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _boxnet_plan(data: dict[str, Any]) -> str:
    """Carries one box after the other to a target of its colour: first along its row, then its column."""
    plan = []
    state = data["initial_state"]
    places = {square: tuple(map(float, square.split("_"))) for square in state}
    targets = [
        (item[7:], places[at]) for at, items in state.items() for item in items if item[:7] == "target_"
    ]
    boxes = [(item[4:], places[at]) for at, items in state.items() for item in items if item[:4] == "box_"]
    for colour, (row, column) in boxes:
        target = next(place for shade, place in targets if shade == colour)
        targets.remove((colour, target))
        while (row, column) != target:
            step = (
                (0, 1 if target[1] > column else -1)
                if column != target[1]
                else (1 if target[0] > row else -1, 0)
            )
            to = (row + step[0], column + step[1])
            plan.append({f"Agent[{row}, {column}]": f"move(box_{colour}, square[{to[0]}, {to[1]}])"})
            row, column = to
        plan.append({f"Agent[{row}, {column}]": f"move(box_{colour}, target_{colour})"})
    return json.dumps(plan)


class _Sorted(frozenset[Any]):
    """A set that is gone through in its elements' order, not in that of their hashes."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(frozenset.__iter__(self)))

    def __sub__(self, other: Any) -> _Sorted:
        return _Sorted(frozenset.__sub__(self, frozenset(other)))


class _Endless(list[Any]):
    """A list that starts again after its end."""

    def __getitem__(self, index: Any) -> Any:
        return list.__getitem__(self, index % len(self))


def _sort_letters(dataset: Any) -> None:
    dataset.letters = _Sorted(dataset.letters)


def _sort_monomials(dataset: Any) -> None:
    monomials = dataset._get_monomials
    dataset._get_monomials = lambda rng: sorted(monomials(rng), key=str)


def _repeat_tasks(dataset: Any) -> None:
    # Which task an index is of, drawn for the first 500 only; the entry's numbers are the index's own.
    dataset.task_indices = _Endless(dataset.task_indices)


def _seeded_tasks(dataset: Any) -> None:
    # One of its tasks uses the process's own `random`.
    dataset.task_indices = _Endless(index for index in dataset.task_indices if index != 14)


def _sort_words(dataset: Any) -> None:
    dataset.size = 2**62  # it refuses a larger index
    neighbours = dataset._get_neighbors
    dataset._get_neighbors = lambda word, words: sorted(neighbours(word, words))


def _read_fonts(dataset: Any) -> None:
    # It reads a font's file for each entry.
    fonts = importlib.import_module("pyfiglet").FigletFont
    fonts.preloadFont = staticmethod(cache(fonts.preloadFont))
    for font in importlib.import_module(type(dataset).__module__).OK_FONTS:
        fonts.preloadFont(font)


@cache
def _load_sympy() -> None:
    # Its functions import one another when they first need to.
    parts = "calculus concrete functions integrals polys sets simplify solvers physics.units"
    for part in parts.split():
        package = importlib.import_module(f"sympy.{part}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


# What makes the draws of a dataset the same everywhere, for all indices, and without files.
_ADAPT: dict[str, Callable[[Any], None]] = {
    "figlet_font": _read_fonts,
    "gsm_symbolic": _repeat_tasks,
    "isomorphic_strings": _sort_letters,
    "list_functions": _seeded_tasks,
    "polynomial_multiplication": _sort_monomials,
    "ransom_note": _sort_letters,
    "word_ladder": _sort_words,
}
_WITH_SYMPY = {
    "advanced_geometry",
    "countdown",
    "polynomial_equations",
    "polynomial_multiplication",
    "puzzle24",
    "simple_equations",
    "simple_integration",
}
