"""Serve a simulated archive as Earth Engine would, to Google's own client over its own protocol.

It answers what the client asks for when it starts (discovery document, list of functions, tokens
for service accounts), evaluates the expressions that search and read, and refuses what the real one
refuses: bad tokens, other projects, unknown images, too many pixels, too many requests at once. It
listens on the loopback interface only.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.io import MemoryFile

from pipeline.simulate.earthengine.accounts import Accounts, BadGrant
from pipeline.simulate.earthengine.graph import EarthEngineRefusal, evaluate, invalid, shipped
from pipeline.simulate.earthengine.images import Grid, Image, Pixels
from pipeline.simulate.earthengine.shelves import load_world
from pipeline.simulate.service.faults import FaultDice, Faults
from pipeline.simulate.service.loopback import Loopback, LoopbackHandler

#: Limits of one request, and of one project (developers.google.com/earth-engine/guides/usage).
MOST_BYTES = 48 * 2**20
MOST_BANDS = 1024
MOST_PX = 32_768
MOST_IN_FLIGHT = 40
_MAX_BODY_BYTES = 10 * 2**20

_CALL = re.compile(r"/v1(?:alpha)?/projects/([^/]+)/(algorithms|value:compute|image:computePixels)")
_PIXEL_KEYS = {"expression", "fileFormat", "grid", "bandIds", "workloadTag"}
#: Faults by which less comes than was announced.
_CUT = ("truncated", "wrong-length")
_LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Sign in with Google</form></body></html>"
_JSON = "application/json; charset=UTF-8"
_PASSING = {
    "throttled": (429, "RESOURCE_EXHAUSTED", "Too many concurrent aggregations."),
    "throttled-bare": (
        *(429, "RESOURCE_EXHAUSTED"),
        "Too Many Requests: Request was rejected because the request rate or concurrency limit "
        "was exceeded.",
    ),
    "server-error": (503, "UNAVAILABLE", "The service is currently unavailable."),
    "internal-error": (500, "INTERNAL", "An internal error has occurred."),
    "missing": (400, "INVALID_ARGUMENT", "Image.load: Image asset not found (does not exist)."),
    "forbidden": (403, "PERMISSION_DENIED", "The caller does not have permission."),
    "expired": (401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
}


class EarthEngineServer(Loopback):
    """Serves one archive folder while the `with` block lasts.

    Parameters
    ----------
    folder : Path
        What `pipeline.simulate.archive.make_archive` wrote.
    project : str
        The one project that may be asked.
    most_memory_px : int or None
        Requests for more pixels than this end with a memory limit; None: none does.
    faults : Faults or None
        What goes wrong with requests; paths are image ids, or `search`.
    port : int
        0 takes a free one.

    Attributes
    ----------
    url : str
        What a recipe's `url` names.
    accounts : Accounts
        Who may ask.
    asked : list of (str, dict)
        Call and body of every search and every request for pixels that was let in.
    most_in_flight : int
        Requests answered at the same time, at most.
    refusal : EarthEngineRefusal or None
        What every search and request for pixels is answered with, while it is set.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str = "terrashard-simulated",
        most_memory_px: int | None = None,
        faults: Faults | None = None,
        port: int = 0,
    ) -> None:
        self.project = project
        self.folder = folder
        self.world = load_world(folder)
        self.faults = faults or Faults()
        self.dice = FaultDice(self.faults)
        self.most_memory_px = most_memory_px
        self.refusal: EarthEngineRefusal | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        super().__init__(_Handler, port)
        # Tokens are made by another host than the one that is asked, as at Google.
        token_uri = f"http://localhost:{self.port}/token"
        self.accounts = Accounts(project, token_uri)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request while it is answered; more than the quota at once are refused."""
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            too_many = self._in_flight > MOST_IN_FLIGHT
        try:
            if too_many:
                raise _refusal("throttled-bare")
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    # --- what is answered --------------------------------------------------------------------

    def compute(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `value:compute`: images are described, tables are told."""
        self.asked.append(("value:compute", body))
        value = evaluate(body.get("expression"), self.world.functions)
        if isinstance(value, dict):
            return {"result": value}
        return {"result": [v.info() if isinstance(v, Image) else v for v in value]}

    def pixels(self, body: dict[str, Any]) -> tuple[bytes, str]:
        """Answer `image:computePixels`: the pixels, and their media type."""
        if unknown := set(body) - _PIXEL_KEYS:
            raise invalid(f'Invalid JSON payload received. Unknown name "{sorted(unknown)[0]}".')
        self.asked.append(("image:computePixels", body))
        image = evaluate(body.get("expression"), self.world.functions)
        if not isinstance(image, Image):
            raise invalid("Image.load: the expression is no image.")
        if "bandIds" in body:
            image = image.select(body["bandIds"])
        grid = _grid(body.get("grid"))
        _check_size(image, grid)
        if self.most_memory_px is not None and grid.width_px * grid.height_px > self.most_memory_px:
            raise invalid("User memory limit exceeded.")
        # A masked pixel is delivered as 0.
        layers = {}
        for band in image.bands:
            values, mask = band.read(grid)
            layers[band.name] = np.where(mask, values, values.dtype.type(0))
        match body.get("fileFormat"):
            case "NPY":
                return _npy(layers), "application/octet-stream"
            case "GEO_TIFF":
                return _geotiff(layers, grid), "image/tiff"
        raise invalid(f"File format {body.get('fileFormat')!r} is not simulated.")


def _refusal(fault: str) -> EarthEngineRefusal:
    status, code, message = _PASSING[fault]
    return EarthEngineRefusal(HTTPStatus(status), code, message)


def _grid(grid: Any) -> Grid:
    """Read a `PixelGrid` of the REST interface."""
    try:
        affine, size = grid["affineTransform"], grid["dimensions"]
        if affine["shearX"] or affine["shearY"] or affine["scaleX"] != -affine["scaleY"]:
            raise invalid("Only square pixels, north up, are simulated.")
        return Grid(
            epsg=int(str(grid["crsCode"]).removeprefix("EPSG:")),
            pixel_m=float(affine["scaleX"]),
            x_min_m=float(affine["translateX"]),
            y_max_m=float(affine["translateY"]),
            width_px=int(size["width"]),
            height_px=int(size["height"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise invalid(f"Invalid pixel grid: {error}.") from error


def _check_size(image: Image, grid: Grid) -> None:
    """Refuse more than one request may bring; a value counts with a byte for its mask."""
    if max(grid.width_px, grid.height_px) > MOST_PX:
        raise invalid(
            f"Pixel grid dimensions ({grid.width_px}x{grid.height_px}) must be less than or equal "
            f"to {MOST_PX}."
        )
    if len(image.bands) > MOST_BANDS:
        raise invalid(f"Number of bands ({len(image.bands)}) must be at most {MOST_BANDS}.")
    value_bytes = sum(np.dtype(band.dtype).itemsize + 1 for band in image.bands)
    total = grid.width_px * grid.height_px * value_bytes
    if total > MOST_BYTES:
        raise invalid(
            f"Total request size ({total} bytes) must be less than or equal to {MOST_BYTES} bytes."
        )


def _npy(layers: dict[str, Pixels]) -> bytes:
    """Return bands as NumPy's file of a structured array of shape (y, x)."""
    shape = next(iter(layers.values())).shape
    table = np.empty(shape, [(name, layer.dtype) for name, layer in layers.items()])
    for name, layer in layers.items():
        table[name] = layer
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def _geotiff(layers: dict[str, Pixels], grid: Grid) -> bytes:
    dtype = np.result_type(*layers.values())
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=grid.width_px,
            height=grid.height_px,
            count=len(layers),
            dtype=dtype,
            crs=rasterio.CRS.from_epsg(grid.epsg),
            transform=Affine(grid.pixel_m, 0, grid.x_min_m, 0, -grid.pixel_m, grid.y_max_m),
        ) as file:
            file.write(np.stack(list(layers.values())).astype(dtype))
            file.descriptions = tuple(layers)
        return bytes(memory.read())


class _Handler(LoopbackHandler):
    @property
    def _earth(self) -> EarthEngineServer:
        return cast(EarthEngineServer, self.server.owner)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self._body()
        try:
            data, kind = self._route(urlsplit(self.path).path, body)
        except BadGrant:
            said = {
                "error": "invalid_grant",
                "error_description": "Not the key or login of an account.",
            }
            self._send(HTTPStatus.BAD_REQUEST, json.dumps(said).encode(), _JSON)
        except EarthEngineRefusal as refusal:
            error = {
                "code": int(refusal.status),
                "message": str(refusal),
                "status": refusal.code,
            }
            self._send(refusal.status, json.dumps({"error": error}).encode(), _JSON)
        else:
            self._send(HTTPStatus.OK, data, kind)

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MAX_BODY_BYTES:
            self.close_connection = True
            return b""
        return self.rfile.read(length)

    def _route(self, path: str, body: bytes) -> tuple[bytes, str]:
        earth = self._earth
        if path == "/$discovery/rest":
            return shipped("cloud_api_discovery_document.json"), _JSON
        if path == "/token":
            return json.dumps(earth.accounts.token(parse_qs(body.decode()))).encode(), _JSON
        found = _CALL.fullmatch(path)
        if found is None:
            raise EarthEngineRefusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "Not Found")
        project, call = found.groups()
        if not earth.accounts.knows(self.headers.get("Authorization", "")):
            raise _refusal("expired")
        if project != earth.project:
            raise EarthEngineRefusal(
                HTTPStatus.FORBIDDEN,
                "PERMISSION_DENIED",
                f"Caller does not have required permission to use project {project}.",
            )
        if call == "algorithms":
            return shipped("algorithms.json"), _JSON
        with earth.in_flight():
            wish = _parsed(body)
            fault = earth.dice.throw(_subject(call, wish), body.decode())
            if fault == "latency":
                time.sleep(earth.faults.latency_s)
            elif fault not in (None, *_CUT):
                return self._fault(fault)
            if earth.refusal is not None:
                raise earth.refusal
            if call == "value:compute":
                answer = json.dumps(earth.compute(wish)).encode(), _JSON
            else:
                answer = earth.pixels(wish)
            if fault in _CUT:
                self._cut(*answer)
            return answer

    def _cut(self, data: bytes, kind: str) -> NoReturn:
        """Send half of what is announced, and hang up."""
        self._head(HTTPStatus.OK, len(data), kind)
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        raise ConnectionResetError

    def _fault(self, fault: str) -> tuple[bytes, str]:
        """Return a wrong answer, raise a refusal, or hang up."""
        if fault == "html":
            return _LOGIN_PAGE, "text/html"
        if fault in _PASSING:
            raise _refusal(fault)
        if fault == "stalled":
            time.sleep(self._earth.faults.stall_s)
        self.close_connection = True
        raise ConnectionResetError

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self._head(status, len(data), kind)
        self.wfile.write(data)

    def _head(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.send_response_only(status)
        headers = {"Content-Type": kind, "Content-Length": str(length)}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["Retry-After"] = str(self._earth.faults.retry_after_s)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        wish = json.loads(body)
    except ValueError as error:
        raise invalid("Invalid JSON payload received.") from error
    if not isinstance(wish, dict):
        raise invalid("Invalid JSON payload received.")
    return wish


def _subject(call: str, wish: dict[str, Any]) -> str:
    """Return what faults go by: the id of the image whose pixels are wanted, or `search`."""
    found = re.search(r'"Image\.load".*?"id": \{"constantValue": "([^"]+)"', json.dumps(wish))
    return found.group(1) if found and call == "image:computePixels" else "search"
