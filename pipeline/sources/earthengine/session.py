"""The door to Earth Engine: what is asked of Google's own client, and who asks.

The client keeps endpoint and credentials in globals of its module: a process speaks to one
endpoint at a time. Its requests go through our own transport, because its errors tell neither
status nor the pause that a server asks for; retries and limits are the caller's.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import ee
import google.auth
import httplib2
import httpx
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from googleapiclient.errors import Error as ClientError
from googleapiclient.errors import HttpError

from pipeline.errors import GiveUp, RecipeError, TryAgain
from pipeline.ports import PixelGrid, Query
from pipeline.sources.bytes.http import explained, retry_after_s
from pipeline.sources.earthengine.errors import failure_of
from pipeline.sources.earthengine.login import KEY, PROJECT
from pipeline.sources.providers import Provider

_CONNECT_S = 10.0
#: Whole numbers up to this are sent as such, so that bands of integers stay integers.
_MOST_INTEGER = 2**31 - 1

Result = TypeVar("Result")

_turn = Lock()
_signed_in: EarthEngine | None = None


class EarthEngine:
    """Asks one endpoint, signed in when first asked.

    Parameters
    ----------
    provider : Provider
        Of kind `earth-engine`, with a `url`.

    Raises
    ------
    RecipeError
        There are no credentials or no project; says which variable to set.
    GiveUp
        `forbidden`, `gone`, `too-large` (ask for less at once), `refused`, `corrupt`.
    TryAgain
        `throttled`, `timeout`, `server-error`, `connection`, `short-read`.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def images(self, query: Query, *, count: int, offset: int) -> list[Any]:
        """Return what the client's `getInfo` says of a query's images, `count` from `offset` on."""
        what = f"images of {query.collection}"
        answer = self._ask(lambda: ee.data.computeValue(images_of(query, count, offset)), what)
        if not isinstance(answer, list):
            raise GiveUp(f"Earth Engine, {what}: the answer is no list.", failure="corrupt")
        return answer

    def properties(self, image: str, version: int) -> dict[str, Any]:
        """Return the properties of one version of an image, without those of the system."""
        answer = self._ask(lambda: ee.data.computeValue(properties_of(image, version)), image)
        if not isinstance(answer, dict):
            raise GiveUp(f"Earth Engine, {image}: the answer is no table.", failure="corrupt")
        return answer

    def npy(
        self,
        image: str,
        version: int,
        bands: Sequence[str],
        grid: PixelGrid,
        *,
        fill: float,
        method: str,
    ) -> bytes:
        """Return pixels of bands of one version of an image, as a structured NPY of (y, x)."""

        def call() -> bytes:
            wish = {
                "expression": pixels_of(image, version, bands, fill, method),
                "fileFormat": "NPY",
                "grid": grid_of(grid),
            }
            return bytes(ee.data.computePixels(wish))

        return self._ask(call, image)

    def _ask(self, call: Callable[[], Result], what: str) -> Result:
        with _told(what):
            self._sign_in()
            return call()

    def _sign_in(self) -> None:
        global _signed_in
        with _turn:
            if _signed_in is self:
                return
            _signed_in = None
            credentials = _credentials()
            ee.Reset()
            # The client would ask another host for a list of old data sets, and wait for ever.
            ee.deprecation.deprecated_assets = {
                "": ee.deprecation.DeprecatedAsset("", *(None,) * 3)
            }
            ee.data.setMaxRetries(0)
            url = str(self._provider.url).rstrip("/")
            ee.Initialize(
                credentials,
                url=url,
                project=_project(credentials),
                http_transport=_Carrier(url, self._provider.timeout_s),
            )
            _signed_in = self


# --- what is asked -------------------------------------------------------------------------------


def images_of(query: Query, count: int, offset: int) -> Any:
    """Return the expression for some of the images that answer a query, in Earth Engine's order."""
    images = ee.ImageCollection(query.collection)
    filters = []
    if query.start is not None and query.end is not None:
        span = (round(moment.timestamp() * 1000) for moment in (query.start, query.end))
        filters.append(ee.Filter.date(*span))
    if query.bbox is not None:
        # Straight edges in longitude and latitude, as in every other catalogue.
        box = ee.Geometry.Rectangle(list(query.bbox), proj="EPSG:4326", geodesic=False)
        filters.append(ee.Filter.bounds(box))
    filters += [ee.Filter.inList(name, list(values)) for name, values in query.only]
    # Not above it: an image that does not say how cloudy it is comes, too.
    filters += [ee.Filter.lte(name, most) for name, most in query.at_most]
    if filters:
        images = images.filter(ee.Filter.And(*filters))
    return images.toList(count, offset)


def properties_of(image: str, version: int) -> Any:
    """Return the expression for the properties of one version of an image."""
    return ee.Image(image, version).toDictionary()


def pixels_of(
    image: str, version: int, bands: Sequence[str], fill: float, method: str = "nearest"
) -> Any:
    """Return the expression for bands of one version of an image, with `fill` where masked.

    Without it Earth Engine delivers 0 there, which may be a value. The nearest pixel is what Earth
    Engine takes unasked; it also stands in where another method has not all the pixels that it
    needs, so that a cell across two tiles has no seam.
    """
    whole = float(fill).is_integer() and abs(fill) <= _MOST_INTEGER
    value = int(fill) if whole else float(fill)
    found = ee.Image(image, version).select(list(bands))
    if method != "nearest":
        found = found.resample(method).unmask(found, sameFootprint=False)
    return found.unmask(value, sameFootprint=False)


def grid_of(grid: PixelGrid) -> dict[str, Any]:
    """Return a raster in the words of the REST interface (`PixelGrid`)."""
    return {
        "crsCode": f"EPSG:{grid.epsg}",
        "dimensions": {"width": grid.width_px, "height": grid.height_px},
        "affineTransform": {
            "scaleX": grid.pixel_m,
            "shearX": 0,
            "translateX": grid.x_min_m,
            "shearY": 0,
            "scaleY": -grid.pixel_m,
            "translateY": grid.y_max_m,
        },
    }


# --- who asks ------------------------------------------------------------------------------------


def _credentials() -> Any:
    """Return credentials: a key file, else the client's own login, else the application's."""
    key = os.environ.get(KEY)
    try:
        if key:
            return ee.ServiceAccountCredentials(key_file=key)
        if Path(ee.oauth.get_credentials_path()).is_file():
            return ee.data.get_persistent_credentials()
        with warnings.catch_warnings():
            # Google's advice on projects does not hold here: `_project` asks for one.
            warnings.filterwarnings("ignore", ".*(No project ID|quota project).*")
            return google.auth.default(scopes=ee.oauth.SCOPES)[0]
    except (OSError, ValueError, ee.EEException, DefaultCredentialsError) as error:
        # What a library says of a key may hold parts of it.
        raise RecipeError(
            "Earth Engine needs credentials: "
            + (f"{KEY} names {key}, which is no key file that can be read. " if key else "")
            + f"Set {KEY} to the path of a service account's key file, run `earthengine "
            "authenticate`, or make application-default credentials."
        ) from error


def _project(credentials: Any) -> str:
    """Return the project to ask: from the environment, else that of the credentials."""
    project = os.environ.get(PROJECT) or next(
        (
            found
            for name in ("quota_project_id", "project_id")
            if (found := getattr(credentials, name, None))
        ),
        None,
    )
    if not project:
        raise RecipeError(f"Earth Engine needs a project: set {PROJECT} to its id.")
    return str(project)


class _Carrier:
    """Carries the client's requests: `httplib2.Http`, as far as the client uses it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        # Nobody closes the client's transport: connections go with it.
        weakref.finalize(self, self._client.close)

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: str | bytes | None = None,
        headers: dict[str, str] | None = None,
        **_: Any,
    ) -> tuple[httplib2.Response, bytes]:
        """Make one request; what Earth Engine refuses is raised as our error.

        Not 401: credentials are then renewed by whoever signs the requests. Nor what comes from
        where tokens are made.
        """
        with explained(uri):
            answer = self._client.request(method, uri, content=body, headers=headers)
        if answer.status_code >= 300 and answer.status_code != 401 and uri.startswith(self._url):
            call = httpx.URL(uri).path.rpartition("/")[2]
            raise failure_of(
                answer.status_code, answer.content, what=call, retry_after_s=retry_after_s(answer)
            )
        values = {**dict(answer.headers), "status": str(answer.status_code)}
        return httplib2.Response(values), answer.content


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what the client and its libraries raise into our errors, without their texts."""
    try:
        yield
    except GoogleAuthError as error:
        text = f"Earth Engine: signing in failed ({type(error).__name__})."
        if error.retryable:
            raise TryAgain(text, failure="server-error") from error
        raise GiveUp(text, failure="forbidden") from error
    except (ee.EEException, HttpError) as error:
        raise GiveUp(
            f"Earth Engine, {what}: the credentials are not accepted.", failure="forbidden"
        ) from error
    except (ClientError, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise GiveUp(
            f"Earth Engine, {what}: the answer cannot be read.", failure="corrupt"
        ) from error
