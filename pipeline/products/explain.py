"""What is wrong with a TOML file, in words of the file."""

from __future__ import annotations

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
        key = _key(loc, values, absent=problem["type"] in ("missing", "extra_forbidden"))
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            key += "." + str(problem["ctx"]["discriminator"]).strip("'")
        trouble = _trouble(dict(problem))
        if problem["type"] == "extra_forbidden" and model is not None:
            trouble += _instead(str(loc[-1]), _keys_at(model, loc[:-1]))
        found.setdefault(key, []).append(trouble)
    parts = [f"`{key}` ".replace("`` ", "") + ", or ".join(what) for key, what in found.items()]
    return f"{name}: " + "; ".join(parts) + "."


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
        here = inner or tagged or here
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
    for step in loc:
        inside: Any = None
        if isinstance(values, dict):
            inside = values.get(step)
            if inside is None and not (absent and step == loc[-1]):
                continue  # the tag of a union: no key of the file
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            inside = values[step]
            if isinstance(inside, dict):
                step = str(inside.get("id") or inside.get("name") or step)
        elif values is not None and not isinstance(values, list):
            break  # inside a single value: the member of a union
        steps.append(str(step))
        values = inside
    return ".".join(steps)


def _trouble(problem: dict[str, Any]) -> str:
    kind, value = problem["type"], problem["input"]
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
    if isinstance(value, dict | list | tuple):
        return text
    return f"{text} (found {str(value) if isinstance(value, date) else repr(value)})"[:300]
