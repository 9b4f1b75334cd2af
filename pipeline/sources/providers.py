"""Who serves scenes, how to behave there, and which addresses may be read.

An entry of `providers.toml` is the whole of what the code knows about a provider. Its hosts are an
allow-list: an address from a catalogue that is not on it is refused before anything is opened.
"""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import GiveUp, RecipeError
from pipeline.products.explain import explain, meant
from pipeline.recipe import LoadedRecipe

Scheme = Literal["https", "http", "s3", "ee"]

#: What no address holds, and what of one says where it leads.
_BLANKS = re.compile(r"[\x00-\x20\x7f]")
_PLACE = re.compile(r"[^/?#\\]*//[^/?#\\]*/")
_DEFAULT_PORTS: dict[str, int | None] = {"https": 443, "http": 80, "s3": None, "ee": None}


class Provider(BaseModel):
    """One entry of `providers.toml`, with the recipe's `url` if it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    kind: Literal["stac-api", "static", "stac-geoparquet", "local", "earth-engine"]
    """Item-search API, static STAC catalogue, product folders on this machine, or Earth Engine,
    which serves pixels and no files."""
    url: str | None = None
    """Root of the API or catalogue; None: the recipe must name one (or, for `local`, a folder)."""
    hosts: tuple[str, ...] = ()
    """Hosts (for s3: buckets, which have no dot) that files may be read from, `*` matches;
    `host:port` patterns match any port they say, others the scheme's own port only."""
    schemes: tuple[Scheme, ...] = ("https",)
    """How files may be read."""
    sign: Literal["planetary-computer"] | None = None
    """How an address is signed at the moment of reading."""
    auth: Literal["basic", "s3-keys", "aws"] | None = None
    """`basic`: HTTP Basic; `s3-keys`: key id and secret. Both from `credentials`, or for `basic`
    from netrc; they go to this provider's hosts only. `aws`: the usual AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, which pay for buckets in `requester_pays`."""
    s3_endpoint: str | None = None
    """Of an S3 service that is not AWS."""
    s3_region: str | None = None
    s3_regions: dict[str, str] = {}
    """Bucket to its region, where that is not `s3_region`."""
    requester_pays: tuple[str, ...] = ()
    """Buckets whose reader pays for the traffic; no other bucket is read at anybody's cost."""
    alternate: str | None = None
    """Which of an asset's alternate addresses is read in place of its own (STAC extension
    `alternate-assets`), where it has that one."""
    requests_per_s: float = Field(default=50, gt=0)
    """For the whole run, shared by its workers."""
    concurrency: int = Field(default=32, ge=1)
    """Requests in flight, for the whole run."""
    page_size: int = Field(default=100, ge=1)
    """Items asked for at once."""
    page_sizes: dict[str, int] = {}
    """Collection to another `page_size`."""
    timeout_s: float = Field(default=60, gt=0)
    """Longest wait for an answer to one request."""
    gzip: bool = True
    """Whether catalogue answers may be compressed (files never are)."""

    @model_validator(mode="after")
    def _plain_http_on_loopback_only(self) -> Provider:
        loopback = all(host.split(":")[0] in ("127.0.0.1", "localhost") for host in self.hosts)
        if "http" in self.schemes and not loopback:
            raise ValueError("`http` is for hosts on loopback only; use `https`")
        return self

    def __hash__(self) -> int:
        """Doors are kept by provider, and pydantic cannot hash the tables in it."""
        return hash((self.name, self.url))

    @property
    def credentials(self) -> tuple[str, str]:
        """Names of the environment variables that hold user and password."""
        stem = f"TERRASHARD_{self.name.upper().replace('-', '_')}"
        return f"{stem}_USER", f"{stem}_PASSWORD"

    def items_a_page(self, collection: str) -> int:
        """Return how many items of a collection to ask for at once."""
        return self.page_sizes.get(collection, self.page_size)

    @property
    def on_disk(self) -> bool:
        """Whether its files are on this machine: `local`, or a catalogue of one's own in a folder
        (scenes of another provider that a file here lists stay where they are)."""
        own = self.url is not None and self.url.startswith("/") and not self.hosts
        return self.kind == "local" or own


@cache
def providers() -> dict[str, Provider]:
    """Return every entry of providers.toml by name."""
    text = files("pipeline.sources").joinpath("providers.toml").read_text()
    try:
        return {
            name: Provider.model_validate({"name": name, **entry})
            for name, entry in tomllib.loads(text).items()
        }
    except ValidationError as error:
        raise RecipeError(explain(error, "providers.toml")) from error


def provider_of(loaded: LoadedRecipe, product: str, name: str) -> Provider:
    """Return one of the providers of a recipe's product, with the recipe's `url` for it.

    Raises
    ------
    RecipeError
        See `load_provider`.
    """
    url = loaded.wishes[product].url_of(name)
    if url is not None and "://" not in url:
        url = str(loaded.path(url))
    return load_provider(name, url=url)


def load_provider(name: str, *, url: str | None = None) -> Provider:
    """Return a provider, with another URL if the recipe gives one.

    Parameters
    ----------
    name : str
        Entry of providers.toml.
    url : str or None
        STAC API, static catalogue or stac-geoparquet file (`*.parquet`, or a folder of them) to
        use instead of the entry's own. A provider of the user's own (`stac`, `static`) may then be
        read from that URL's host, or from the folder that holds the catalogue; a known provider
        keeps its list of hosts.

    Raises
    ------
    RecipeError
        No such provider; a URL is missing; or it is neither https, nor http on loopback, nor (for
        `static` and stac-geoparquet) a path that exists.
    """
    known = providers()
    if name not in known:
        raise RecipeError(
            f"there is no provider {name!r}; known are: {', '.join(known)}{meant(name, known)}."
        )
    provider = known[name]
    if provider.kind == "local":
        return provider
    if url is None:
        if provider.url is None:
            raise RecipeError(f"provider {name!r} needs a `url` in the recipe.")
        return provider
    return provider.model_copy(update=_elsewhere(provider, url))


def _elsewhere(provider: Provider, url: str) -> dict[str, object]:
    """Return the fields that change when a provider is used at another URL."""
    bulk: dict[str, object] = {"kind": "stac-geoparquet"} if is_bulk(url) else {}
    if "://" not in url and (provider.kind == "static" or bulk):
        path = Path(url).resolve()
        if not path.exists() or (not bulk and not path.is_file()):
            raise RecipeError(f"the catalogue {path} of provider {provider.name!r} does not exist.")
        here = {"url": str(path), **bulk}
        return here if bulk and provider.hosts else {**here, "schemes": (), "hosts": ()}
    parts = _split(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost")
    if parts.username is not None or parts.password is not None:
        raise RecipeError(
            f"`url` of provider {provider.name!r} has a login in it, which every plan would keep; "
            "leave it out: catalogues are asked without one."
        )
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise RecipeError(
            f"`url` {url!r} of provider {provider.name!r} must be https, or http on 127.0.0.1."
        )
    if provider.hosts:
        return {"url": url, **bulk}
    return {"url": url, "schemes": (parts.scheme,), "hosts": (parts.netloc,), **bulk}


def is_bulk(url: str) -> bool:
    """Whether a URL or path is that of stac-geoparquet: a file, or a folder of such files."""
    path = _split(url).path
    return path.endswith(".parquet") or ("://" not in url and any(Path(url).glob("*.parquet")))


def check_href(provider: Provider, href: str) -> None:
    """Refuse an address that the provider's entry does not allow.

    Whatever a catalogue writes into an item ends up here first: another host, another scheme, a
    GDAL virtual path, a local file named by a remote catalogue, or a name with credentials in it.

    Raises
    ------
    GiveUp
        With the class `refused`; the message names the host, never a query or a credential.
    """
    if _BLANKS.search(href):
        raise _refused(provider, "an address with blanks or control characters")
    if provider.on_disk:
        _check_path(provider, href)
        return
    # Scenes of a provider lie in few places, and only the place matters from here on.
    place = _PLACE.match(href)
    if (problem := _problem(provider, href if place is None else place[0])) is not None:
        raise _refused(provider, problem)


@lru_cache(maxsize=4096)
def _problem(provider: Provider, place: str) -> str | None:
    """Return why nothing may be read from a place (`https://host:port/`), or None."""
    try:
        parts = _split(place)
        port = parts.port
    except (ValueError, RecipeError):
        return "an address that cannot be parsed"
    if parts.scheme not in provider.schemes:
        allowed = ", ".join(provider.schemes)
        return f"scheme {parts.scheme[:20]!r} (allowed: {allowed})"
    if parts.username is not None or parts.password is not None:
        return "an address with credentials in it"
    host = (parts.hostname or "").lower()
    if not _listed(provider, host, port, parts.scheme):
        return f"host {parts.netloc[:80]!r} (allowed: {', '.join(provider.hosts)})"
    return None


def _listed(provider: Provider, host: str, port: int | None, scheme: str) -> bool:
    default = _DEFAULT_PORTS[scheme]
    for pattern in provider.hosts:
        if scheme == "https" and "s3" in provider.schemes and "." not in pattern:
            continue  # a bucket
        if ":" in pattern:
            if fnmatchcase(f"{host}:{port or default}", pattern):
                return True
        elif port in (None, default) and fnmatchcase(host, pattern):
            return True
    return False


def _check_path(provider: Provider, href: str) -> None:
    path = Path(href)
    if not path.is_absolute() or href.startswith("/vsi"):
        raise _refused(provider, "an address that is no absolute path")
    if provider.url is not None and not path.resolve().is_relative_to(_folder(Path(provider.url))):
        raise _refused(provider, "a path outside the folder of its catalogue")


def _folder(catalogue: Path) -> Path:
    return catalogue if catalogue.is_dir() else catalogue.parent


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RecipeError(f"{url!r} is no URL: {error}.") from error


def _refused(provider: Provider, what: str) -> GiveUp:
    return GiveUp(f"provider {provider.name}: refused {what}.", failure="refused")
