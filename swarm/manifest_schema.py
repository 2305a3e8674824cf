"""What a manifest may hold, for editors (JSON schema) and people (`docs/manifest.md`); made from the structs.

`python -m swarm.manifest_schema` writes both files anew; a test sees to it that they are up to date.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from swarm.manifest import Manifest

ROOT = Path(__file__).parent.parent
SCHEMA_FILE = ROOT / "configs" / "manifest.schema.json"
DOCS_FILE = ROOT / "docs" / "manifest.md"
_MARKDOWN = re.compile(r"\[`?(\w+)`?\]\([^)]*\)|[`*]")
_MARK = "<!-- from here on: python -m swarm.manifest_schema -->"


def schema(kind: type[Struct] = Manifest) -> dict[str, Any]:
    """The JSON schema (2020-12) of a manifest, or of a task's parameters."""
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **reference, "$defs": components}


def schema_text() -> str:
    """What the schema file holds."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def docs_text(head: str) -> str:
    """What the docs file holds, `head` being its hand-written beginning."""
    components = schema()["$defs"]
    order = ["Manifest", *(name for name in components if name != "Manifest")]
    tables = "\n".join(_table(name, components[name]) for name in order)
    return f"{head.partition(_MARK)[0]}{_MARK}\n\n{tables}"


def parameter_rows(kind: type[Struct]) -> list[tuple[str, ...]]:
    """A task's parameters, and those of what they hold: name, type, default, meaning."""
    rows = []
    for name, described in schema(kind)["$defs"].items():
        inside = "" if name == kind.__name__ else f"{name.lower()}."
        required = described.get("required", [])
        rows += [
            (f"{inside}{key}", _type(field), _default(key, field, required), field.get("description", ""))
            for key, field in described.get("properties", {}).items()
        ]
    return [(key, *(_MARKDOWN.sub(r"\1", cell) for cell in cells)) for key, *cells in rows]


def _table(name: str, described: dict[str, Any]) -> str:
    title = "The manifest" if name == "Manifest" else f"`{name}`"
    required = described.get("required", [])
    rows = [
        f"| `{key}` | {_type(field)} | {_default(key, field, required)} | {field.get('description', '')} |"
        for key, field in described["properties"].items()
    ]
    about = inspect.cleandoc(described.get("description", ""))
    return "\n".join(
        [f"## {title}", "", about, "", "| key | is | default | means |", "|---|---|---|---|", *rows, ""]
    )


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[`{name}`](#{name.lower()})"
    if "anyOf" in field or "allOf" in field:
        return " or ".join(_type(one) for one in field.get("anyOf") or field["allOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    limits = [f"{sign} {field[key]}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([_TYPES.get(field.get("type", ""), "anything"), ", ".join(limits)]).strip()


_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "map",
}


def _default(key: str, field: dict[str, Any], required: list[str]) -> str:
    if key in required:
        return "**required**"
    value = field.get("default")
    return "its defaults" if isinstance(value, dict) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text())
    DOCS_FILE.write_text(docs_text(DOCS_FILE.read_text() if DOCS_FILE.exists() else ""))
