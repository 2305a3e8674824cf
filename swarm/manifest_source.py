"""A person's YAML, read strictly: every error says the file, the line, what is wrong and what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect

from swarm.errors import UsageError

T = TypeVar("T")
#: Where something stands in a document: `("stages", 0, "ends_at")`.
Keys = tuple[str | int, ...]

_MAX_DEPTH = 32
_TEXT = "tag:yaml.org,2002:str"
_ERROR_PATH = re.compile(r" - at `(key in )?\$(.*)`$")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"unknown field `(.*?)`")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `1e-5` for a text; everybody means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


class Source:
    """One YAML document and where everything in it stands."""

    def __init__(self, data: bytes, name: str) -> None:
        """`UsageError` if it is no YAML, or uses what no manifest needs: aliases, tags, a key twice."""
        self._name = name
        try:
            self._check_events(data)
            node = yaml.compose(data, Loader=_Loader)
            self._lines: dict[Keys, int] = {}
            if node is None:
                raise UsageError(f"manifest {name} is empty")
            self._walk(node, ())
            self._value = yaml.load(data, Loader=_Loader)  # it is a SafeLoader
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = self._at(mark.line + 1) if mark else self._at(1)
            raise UsageError(f"{at}not YAML: {error.problem or error.context}") from error
        # A date that is none, half a surrogate pair, a number with more digits than Python reads, …
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"manifest {name} is not YAML: {' '.join(str(error).split())}") from error

    def convert(self, kind: type[T]) -> T:
        """The document as a struct."""
        try:
            return msgspec.convert(self._value, kind)
        except msgspec.ValidationError as error:
            raise self.translated(error, (), kind) from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(f"manifest {self._name}: {error}") from error

    def translated(self, error: msgspec.ValidationError, inside: Keys, kind: Any) -> UsageError:
        """msgspec's complaint about what stands at `inside`, which should be a `kind`."""
        keys, what = _split(str(error))
        if unknown := _UNKNOWN.search(what):
            allowed = _allowed(kind, keys)
            close = difflib.get_close_matches(unknown[1], allowed, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            allows = f"allowed are {', '.join(allowed)}" if allowed else "none is allowed here"
            what = f"unknown key {unknown[1]!r}; {meant}{allows}"
            keys = (*keys, unknown[1])
        elif what.startswith("Invalid enum value") and (allowed := _allowed(kind, keys)):
            what += f"; allowed are {', '.join(allowed)}"
        return self.error((*inside, *keys), what)

    def error(self, keys: Keys, what: str) -> UsageError:
        """An error about what stands there, with its line, or that of what it should stand in."""
        return UsageError(f"{self._at(self.line(keys))}{path_text(keys)}{what}")

    def line(self, keys: Keys) -> int:
        """The line, from 1 on, where something stands, or what would hold it."""
        while keys not in self._lines and keys:
            keys = keys[:-1]
        return self._lines.get(keys, 1)

    def _at(self, line: int) -> str:
        return f"manifest {self._name}, line {line}: "

    def _check_events(self, data: bytes) -> None:
        """Before anything is built of it: a few lines with aliases make a document of any size."""
        depth = 0
        for event in yaml.parse(data, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            at = self._at(event.start_mark.line + 1 if event.start_mark else 1)
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{at}aliases (*{event.anchor}) are not allowed")
            if depth > _MAX_DEPTH:
                raise UsageError(f"{at}more than {_MAX_DEPTH} levels deep")
            if tag := getattr(event, "tag", None):
                raise UsageError(f"{at}tags ({tag}) are not allowed")

    def _walk(self, node: yaml.Node, keys: Keys) -> None:
        self._lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # a half of a surrogate pair cannot be written as UTF-8
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._walk(item, (*keys, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag != _TEXT:
                    raise UsageError(f"{self._at(key.start_mark.line + 1)}a key must be text; quote it")
                inner = (*keys, str(key.value))
                line = key.start_mark.line + 1
                if inner in self._lines:
                    raise UsageError(
                        f"{self._at(line)}{path_text(inner)}the key stands in line {self._lines[inner]} too; "
                        "keep one"
                    )
                self._lines[inner] = line
                self._walk(value, inner)


def path_text(keys: Keys) -> str:
    """`stages[0].ends_at: `, or nothing for the whole document."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return f"{text}: " if text else ""


def _split(message: str) -> tuple[Keys, str]:
    """The path in msgspec's message, as far as it names keys, and the rest."""
    found = _ERROR_PATH.search(message)
    if not found:
        return (), message
    keys: list[str | int] = []
    position = 0
    while step := _STEP.match(found[2], position):
        keys.append(step[1] if step[1] is not None else int(step[2]))
        position = step.end()
    return tuple(keys), message[: found.start()]


def _allowed(kind: Any, keys: Keys) -> list[str]:
    """The keys, or the values, that are allowed at a place in a type."""
    types = [inspect.type_info(kind)]
    for key in keys:
        types = [inner for outer in types for inner in _inside(outer, key)]
    allowed: list[str] = []
    for one in _alternatives(types):
        if isinstance(one, inspect.StructType):
            allowed += [field.encode_name for field in one.fields]
        elif isinstance(one, inspect.LiteralType):
            allowed += [str(value) for value in one.values]
    return allowed


def _inside(outer: inspect.Type, key: str | int) -> list[inspect.Type]:
    found: list[inspect.Type] = []
    for one in _alternatives([outer]):
        if isinstance(one, inspect.StructType):
            found += [field.type for field in one.fields if field.encode_name == key]
        elif isinstance(one, inspect.VarTupleType | inspect.ListType):
            found.append(one.item_type)
    return found


def _alternatives(types: list[inspect.Type]) -> list[inspect.Type]:
    flat: list[inspect.Type] = []
    for one in types:
        while isinstance(one, inspect.Metadata):
            one = one.type
        flat += _alternatives(list(one.types)) if isinstance(one, inspect.UnionType) else [one]
    return flat
