"""Evaluate the expressions that Earth Engine's client sends: calls of named functions, nested.

The client's package ships the signatures of all functions; arguments are held to them. Only the
functions that a world brings along can be called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError

#: The back end refuses deeper nesting (comment in the client's serializer).
_DEEPEST = 100

Functions = Mapping[str, Callable[..., Any]]


class EarthEngineRefusal(Exception):
    """A request that Earth Engine answers with an error.

    Parameters
    ----------
    status : HTTPStatus
    code : str
        Google's word for it: `INVALID_ARGUMENT`, `RESOURCE_EXHAUSTED`, ...
    message : str
    """

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def invalid(message: str) -> EarthEngineRefusal:
    """Return the refusal of a request that makes no sense: status 400."""
    return EarthEngineRefusal(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", message)


def shipped(name: str) -> bytes:
    """Return a file that the client's package ships for its own tests.

    Raises
    ------
    RecipeError
        The client (the extra `earthengine`) is not installed.
    """
    found = find_spec("ee")
    if found is None or found.origin is None:
        raise RecipeError("the simulated Earth Engine needs the extra `earthengine`.")
    return (Path(found.origin).parent / "tests" / name).read_bytes()


def evaluate(expression: Any, functions: Functions) -> Any:
    """Return the value of an expression: `{"result": name, "values": {name: node}}`.

    Raises
    ------
    EarthEngineRefusal
        It is malformed or too deep, calls a function that is not known, or gives one other
        arguments than its signature has.
    """
    if not isinstance(expression, dict) or set(expression) != {"result", "values"}:
        raise invalid("Invalid JSON payload received: no expression.")
    return _Evaluation(expression["values"], functions).named(expression["result"], 0)


class _Evaluation:
    """The nodes of one expression; those with names are evaluated once."""

    def __init__(self, nodes: Any, functions: Functions) -> None:
        self._nodes = nodes if isinstance(nodes, dict) else {}
        self._functions = functions
        self._known: dict[str, Any] = {}

    def named(self, name: Any, depth: int) -> Any:
        if name not in self._nodes:
            raise invalid(f"Value reference {name!r} not found.")
        if name not in self._known:
            self._known[name] = self.node(self._nodes[name], depth)
        return self._known[name]

    def node(self, node: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise invalid("Expression is nested too deeply.")
        if not isinstance(node, dict) or len(node) != 1:
            raise invalid("Invalid JSON payload received: a node has one kind.")
        ((kind, value),) = node.items()
        match kind:
            case "constantValue":
                return value
            case "integerValue":
                return int(value)
            case "valueReference":
                return self.named(value, depth + 1)
            case "arrayValue":
                return [self.node(item, depth + 1) for item in value["values"]]
            case "dictionaryValue":
                return {key: self.node(item, depth + 1) for key, item in value["values"].items()}
            case "functionInvocationValue":
                return self._call(value, depth)
        raise invalid(f"Node of kind {kind!r} cannot be evaluated.")

    def _call(self, call: Any, depth: int) -> Any:
        name = call.get("functionName")
        if name not in self._functions:
            raise invalid(f"Unknown function {name!r}.")
        given = call.get("arguments", {})
        required, allowed = _signature(name)
        if missing := required - set(given):
            raise invalid(f"{name}: Parameter '{sorted(missing)[0]}' is required.")
        if extra := set(given) - allowed:
            raise invalid(f"{name}: Unrecognized argument '{sorted(extra)[0]}'.")
        values = {key: self.node(value, depth + 1) for key, value in given.items()}
        return self._functions[name](**values)


def _signature(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the required arguments of a function, and all of them."""
    arguments = _signatures()[name]
    required = (a["argumentName"] for a in arguments if not a.get("optional"))
    return frozenset(required), frozenset(a["argumentName"] for a in arguments)


@cache
def _signatures() -> dict[str, list[dict[str, Any]]]:
    listed = json.loads(shipped("algorithms.json"))["algorithms"]
    return {
        entry["name"].removeprefix("algorithms/"): entry.get("arguments", []) for entry in listed
    }
