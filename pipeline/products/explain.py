"""What is wrong with a TOML file, in words of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(
    error: ValidationError, name: str, values: Any = None, model: type[BaseModel] | None = None
) -> str:
    """Turn pydantic's errors into one paragraph: file, key, what was found, what is allowed.

    Parameters
    ----------
    values : Any
        What was checked; with it keys are named as they stand in the file.
    model : type or None
        What it was checked against; with it an unknown key is told what may stand there.
    """
    problems = error.errors(include_url=False)
    found: dict[str, list[str]] = {}
    for problem in problems:
        loc = problem["loc"]
        inner = [other["loc"] for other in problems if len(other["loc"]) > len(loc)]
        if any(other[: len(loc)] == loc for other in inner):
            continue  # a whole that is wrong because a part is
        if len(problems) > 1 and _is_default(problem, values):
            continue  # what was made of another key that is wrong
        if problem["type"] == "missing" and isinstance(loc[-1], int):
            loc = loc[:-1]  # of a list, which is too short
        key = _key(loc, values, absent=problem["type"] in ("missing", "extra_forbidden"))
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            key += "." + str(problem["ctx"]["discriminator"]).strip("'")
        trouble = _trouble(dict(problem))
        if problem["type"] == "extra_forbidden" and model is not None:
            trouble += _instead(str(loc[-1]), _keys_at(model, loc[:-1]))
        found.setdefault(key, []).append(trouble)
    parts = [f"`{key}` ".replace("`` ", "") + ", or ".join(what) for key, what in found.items()]
    return f"{name}: " + "; ".join(parts) + "."


def toml_trouble(error: Exception) -> str:
    """Return what is wrong with a text that should be TOML."""
    said = str(error)
    return said.replace("Cannot overwrite a value", "a key or table that is there already")


def meant(word: str, known: Iterable[str]) -> str:
    """Return what a mistyped word was probably meant to be, as a question; empty if nobody knows.

    Examples
    --------
    >>> meant("enmap-l2", ["enmap-l2a", "nlcd"])
    ' (did you mean `enmap-l2a`?)'
    """
    near = get_close_matches(word, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _instead(key: str, known: list[str]) -> str:
    return meant(key, known) or f" (allowed are: {', '.join(known)})"


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the table at a place; of a union, those of the member that is tagged."""
    here = [model]
    for step in loc:
        inner = [
            table
            for outer in here
            if step in outer.model_fields
            for table in _tables_in(outer.model_fields[str(step)].annotation)
        ]
        tagged = [t for t in here if step in _tags(t)]
        of_union = len(here) > 1 and tagged
        here = of_union or inner or tagged or here
    return [*dict.fromkeys(name for table in here for name in table.model_fields)]


def _tags(table: type[BaseModel]) -> list[Any]:
    return [tag for field in table.model_fields.values() for tag in get_args(field.annotation)]


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models within a type, however deep: `tuple[A, ...]`, `A | B | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _tables_in(part)]


def _key(loc: tuple[int | str, ...], values: Any, *, absent: bool) -> str:
    """Return the dotted key of a place: entries of a list by their id or name, no type names."""
    steps = []
    for place, step in enumerate(loc):
        inside: Any = None
        if isinstance(values, dict):
            inside = values.get(step)
            if inside is None and not (absent and place == len(loc) - 1):
                continue  # the tag of a union: no key of the file
        elif isinstance(values, list) and not isinstance(step, int):
            continue  # the member of a union
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            inside = values[step]
            if isinstance(inside, dict):
                named = inside.get("id") or inside.get("name")
                step = named if isinstance(named, str) else str(step)
        elif values is not None and not isinstance(values, list):
            break  # inside a single value: the member of a union
        steps.append(str(step))
        values = inside
    return ".".join(steps)


def _is_default(problem: Any, values: Any) -> bool:
    """Return whether a single value is wrong that does not stand in the file."""
    *tables, key = problem["loc"]
    if problem["type"] in ("missing", "value_error") or not isinstance(values, dict):
        return False
    for step in tables:
        inside = values.get(step) if isinstance(values, dict) else None
        values = values if inside is None else inside
    return isinstance(values, dict) and key not in values


#: What a value should be, by pydantic's name for its being something else.
_SHOULD_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "dict_type": "a table",
}


def _trouble(problem: dict[str, Any]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "missing" and isinstance(value, list | tuple):
        return f"has too few values (found {list(value)})"
    if kind == "too_long" and isinstance(value, list | tuple):
        return f"takes {problem['ctx']['max_length']} values (found {list(value)})"
    if kind in ("missing", "union_tag_not_found"):
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a known key"
    if kind == "union_tag_invalid":
        return f"is '{problem['ctx']['tag']}'; allowed are: {problem['ctx']['expected_tags']}"
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind == "tuple_type" and isinstance(value, dict):
        return "is one table; write its head in double brackets, `[[...]]`, for each of a list"
    text = str(problem["msg"]).removeprefix("Input ").replace("String should", "should")
    if kind in _SHOULD_BE:
        text = f"should be {_SHOULD_BE[kind]}"
    if isinstance(value, dict | list | tuple):
        return text
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{text} (found {value!r}){meant(value, known)}"
    return f"{text} (found {str(value) if isinstance(value, date) else repr(value)})"[:300]
