"""Read what a client wishes of an item search; whatever makes no sense is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import shapely


class Refused(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the wishes in the parameters of a URL, in the form a POST body has."""
    wish: dict[str, Any] = dict(query)
    for key in ("collections", "ids"):
        if key in wish:
            wish[key] = wish[key].split(",")
    if "query" in wish:
        wish["query"] = _parsed(wish["query"], "query is no JSON object")
    if "bbox" in wish:
        wish["bbox"] = _floats(wish["bbox"])
    if "intersects" in wish:
        wish["intersects"] = _parsed(wish["intersects"], "intersects is no JSON geometry")
    return wish


def from_body(body: Any) -> dict[str, Any]:
    """Return the wishes in a POST body."""
    if not isinstance(body, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return body


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"bbox {text!r} is not numbers") from error


def _parsed(text: str, trouble: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, trouble) from error


def flat(value: Any) -> str:
    """Write a wish as the value of a URL parameter."""
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)


def number(wish: Mapping[str, Any], key: str, default: int, *, least: int) -> int:
    """Return a whole number among the wishes; `Refused` if it is none or too small."""
    text = str(wish.get(key, default))
    if not text.isdigit() or int(text) < least:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key} must be a whole number from {least}")
    return int(text)


def area(wish: Mapping[str, Any]) -> shapely.Geometry | None:
    """Return the wanted area in longitude and latitude, or None for everywhere."""
    if wish.get("intersects") is not None:
        return _shape(wish["intersects"])
    bbox = wish.get("bbox")
    if bbox is None:
        return None
    if len(bbox) == 6:
        bbox = [*bbox[:2], *bbox[3:5]]
    if len(bbox) != 4:
        raise Refused(HTTPStatus.BAD_REQUEST, "bbox must have 4 or 6 numbers")
    west, south, east, north = bbox
    if west > east:  # across the antimeridian
        return shapely.union(
            shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)
        )
    return shapely.box(west, south, east, north)


def meets(query: Any, properties: Mapping[str, Any]) -> bool:
    """Whether an item's properties meet a wish of STAC's query extension; no value meets none."""
    if not isinstance(query, dict) or not all(isinstance(tests, dict) for tests in query.values()):
        raise Refused(HTTPStatus.BAD_REQUEST, "query must map properties to tests")
    return all(
        _passes(properties.get(name), test, wanted)
        for name, tests in query.items()
        for test, wanted in tests.items()
    )


def _passes(value: Any, test: str, wanted: Any) -> bool:
    match test:
        case "eq":
            return bool(value == wanted)
        case "in" if isinstance(wanted, list):
            return value in wanted
        case "lte" if isinstance(wanted, int | float):
            return isinstance(value, int | float) and value <= wanted
    raise Refused(HTTPStatus.BAD_REQUEST, f"query has no test {test!r} of {wanted!r}")


def _shape(geometry: Any) -> shapely.Geometry:
    try:
        return shapely.geometry.shape(geometry)
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "intersects is no GeoJSON geometry") from error


def span(text: str | None) -> tuple[datetime, datetime]:
    """Return the first and the last wanted moment."""
    first, _, last = (text or "../..").partition("/")
    earliest, latest = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    start = earliest if first in ("", "..") else instant(first)
    if not last and "/" not in (text or "/"):
        return start, start
    return start, latest if last in ("", "..") else instant(last)


def instant(text: str) -> datetime:
    """Read an RFC 3339 time; without a zone it is UTC."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{text!r} is not an RFC 3339 time") from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)
