"""Values against a schema: unknown names, wrong types and numbers out of range at any depth, each with its fix.

The part of JSON Schema (2020-12) that pydantic writes and that an argument spec can be turned into. A library
would have to be on every controller, and says "Additional properties are not allowed" where an operator needs to
read which name was meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .display import as_text, is_among_keys, may_be_secret, shown, shown_name
from .text_formats import FORMATS
from .value_types import MOST, TYPES, has_type, type_in_words

Schema = Mapping[str, Any]

_SPEC_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "str": "text",
    "path": "text",
}
_OPTION = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")
_WORDS = {
    "^[0-9a-f]{64}$": "be 64 hexadecimal digits in lower case",
    "^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$": "be a prefix without a slash at its ends, such as v1 or openai/v1",
    "^(/[A-Za-z0-9._~-]+)+$": "be a path, such as /v1/summarize",
    r"^[^\x00-\x1f\x7f]*$": "be a text without control characters",
}
# Bounds of this size only protect arithmetic, so messages do not mention them.
_UNBOUNDED = 2**53


def of_spec(options: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a dictionary with these options of an argument spec."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _of_option(option) for name, option in options.items()},
        "required": [name for name, option in options.items() if option.get("required")],
    }


def _of_option(option: Mapping[str, Any]) -> dict[str, Any]:
    inner = of_spec(option["options"]) if "options" in option else {}
    kind = _SPEC_TYPES.get(option.get("type", "str"))
    if kind == "array":
        elements = option.get("elements", "raw")
        return {"type": "array", "items": inner or ({"type": _SPEC_TYPES[elements]} if elements in _SPEC_TYPES else {})}
    schema: dict[str, Any] = inner or ({"type": kind} if kind else {})
    if "choices" in option:
        schema = {**schema, "enum": option["choices"]}
    return schema


def resolved(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema that a reference to the definitions stands for; any other schema itself."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def problems(where: str, value: Any, schema: Schema, definitions: Mapping[str, Schema] | None = None) -> Iterator[str]:
    """What is wrong with `value`; each sentence begins with `where` it is."""
    yield from _Check(definitions or {}).problems(where, value, schema)


class _Check:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def problems(self, where: str, value: Any, schema: Schema) -> Iterator[str]:
        schema = resolved(schema, self._definitions)
        if not schema:
            yield from self._free(where, value)
            return
        if value is None and _may_be_null(schema):
            yield f"{where} is empty: give it a value, or take the line out"
            return
        if "anyOf" in schema:
            schema = resolved(next(one for one in schema["anyOf"] if one.get("type") != "null"), self._definitions)
        kind = schema.get("type")
        if kind is not None and not has_type(value, kind):
            found = type_in_words(value) if kind in ("object", "array") else shown(where, value, schema)
            yield f"{where} is {found}, but must be {TYPES[kind][1]}"
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{where} is {shown(where, value, schema)}, but must be one of {', '.join(map(str, schema['enum']))}"
        elif kind == "object":
            yield from self._object(where, value, schema)
        elif kind == "array":
            yield from self._array(where, value, schema)
        else:
            yield from _scalar(where, value, schema)

    def _free(self, where: str, value: Any) -> Iterator[str]:
        """Numbers that are too large, in a value that may be anything else."""
        if isinstance(value, Mapping):
            yield from self._object(where, value, {})
        elif isinstance(value, (list, tuple)):
            yield from self._array(where, list(value), {})
        elif isinstance(value, (int, float)) and (wrong := _number(where, value, {})):
            yield wrong

    def _object(self, where: str, value: Mapping[Any, Any], schema: Schema) -> Iterator[str]:
        known = schema.get("properties", {})
        others = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties", {}))
        for name in schema.get("required", []):
            if value.get(name) is None:
                yield f"{where} lacks {name}"
        names = schema.get("propertyNames", {})
        for name, item in value.items():
            text = as_text(name)
            if name in known:
                # An empty value of a required name is reported above.
                if item is not None or name not in schema.get("required", []):
                    yield from self.problems(f"{where}.{name}", item, known[name])
            elif others is False:
                yield _unknown_option(where, text, known)
            elif not text and names.get("minLength"):
                yield f"{where} has an entry without a name: give it one"
            elif len(text) > names.get("maxLength", len(text)):
                yield f"{where} has an entry whose name has {len(text)} characters: use at most {names['maxLength']}"
            elif any(not _fits(text, pattern) for pattern in schema.get("patternProperties", ())):
                yield f"{where} has an entry whose name has control characters: {shown_name(where, name)}"
            elif "x-words" in names and not re.fullmatch(names["pattern"], text):
                # The rest may be a value, as in A=1.
                begin = re.match(r"\w{0,15}", text)
                yield f"{where} has a name that begins with {begin[0] if begin else ''!r}, but names must {names['x-words']}"
            else:
                yield from self.problems(f"{where}.{shown_name(where, name)}", item, others)

    def _array(self, where: str, value: list[Any], schema: Schema) -> Iterator[str]:
        least = schema.get("minItems", 0)
        if len(value) < least:
            yield f"{where} is empty, but needs {least} or more"
        for number, item in enumerate(value):
            name = item.get("name") if isinstance(item, Mapping) else None
            yield from self.problems(
                f"{where}[{number}]" + (f" ({shown_name(where, name)})" if name else ""), item, schema.get("items", {})
            )


def _may_be_null(schema: Schema) -> bool:
    return schema.get("type") == "null" or any(one.get("type") == "null" for one in schema.get("anyOf", ()))


def _unknown_option(where: str, name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    is_name = _OPTION.fullmatch(name) is not None
    if is_name and is_among_keys(where) and may_be_secret(name):
        is_name = bool(difflib.get_close_matches(name, known, n=1, cutoff=0.8))
    option = f"the unknown option {name!r}" if is_name else "an unknown option, not shown since it may be a secret"
    return f"{where} has {option}: {hint}"


def _scalar(where: str, value: Any, schema: Schema) -> Iterator[str]:
    found = shown(where, value, schema)
    kind = schema.get("type")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and (wrong := _number(where, value, schema)):
        yield wrong
    elif kind in ("text", "string"):
        # A number or a day without quotes is used as text.
        text, pattern = str(value), schema.get("pattern")
        if not schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text)):
            yield f"{where} has {len(text)} characters, but must have {_range(schema, 'minLength', 'maxLength')}"
        elif pattern is not None and not _fits(text, pattern):
            yield f"{where} is {found}, but must {schema.get('x-words') or _WORDS.get(pattern, f'match {pattern}')}"
    if "format" in schema and (wrong := FORMATS.get(schema["format"], lambda _: "")(value)):
        yield f"{where} is {found}: {wrong}"


def _fits(text: str, pattern: str) -> bool:
    """Whether a text matches a pattern. `$` means the end of the text only, not also a newline before it."""
    return re.search(pattern.removesuffix("$") + (r"\Z" if pattern.endswith("$") else ""), text) is not None


def _number(where: str, value: float, schema: Schema) -> str:
    """What is wrong with a number, "" if nothing is."""
    least, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if value != value or value in (float("inf"), float("-inf")):
        return f"{where} is {value!r}, but must be a finite number"
    if (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
    ):
        bounds = [
            f"{words} {bound}"
            for words, bound in (("at least", least), ("more than", above), ("at most", most))
            if bound is not None and abs(bound) < _UNBOUNDED
        ]
        return f"{where} is {shown(where, value, schema)}, but must be {' and '.join(bounds) or f'at most {most}'}"
    if abs(value) > MOST:
        return f"{where} is {shown(where, value, schema)}, but no number may have more than 64 bits"
    return ""


def _range(schema: Schema, low: str, high: str) -> str:
    return " to ".join(str(schema[name]) for name in (low, high) if name in schema)


def fitting(value: Any, schema: Schema, definitions: Mapping[str, Schema]) -> Any:
    """The value without its parts that have the wrong type or a number out of range: other checks rely on the rest."""
    schema = resolved(schema, definitions)
    if "anyOf" in schema:
        schema = next(one for one in schema["anyOf"] if one.get("type") != "null")
        return fitting(value, schema, definitions)
    kind = schema.get("type")
    if kind is not None and not has_type(value, kind):
        return None
    if isinstance(value, (int, float)) and _number("", value, schema):
        return None
    if kind == "array":
        items = [fitting(item, schema.get("items", {}), definitions) for item in value]
        return [item for item in items if item is not None]
    if kind == "object":
        known = schema.get("properties", {})
        others: Schema = next(iter(schema.get("patternProperties", {}).values()), {})
        return {
            as_text(name): fitting(item, known.get(name, others), definitions)
            for name, item in value.items()
            if item is not None and fitting(item, known.get(name, others), definitions) is not None
        }
    return value
