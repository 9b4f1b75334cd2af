"""Who may be read from: everything that is not on a provider's list is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import GiveUp, RecipeError
from pipeline.sources.providers import Provider, check_href, load_provider, providers

REMOTE = [name for name, entry in providers().items() if entry.url is not None]
GOOD = {
    "planetary-computer": "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/B02_10m.tif",
    "earth-search": "https://sentinel-cogs.s3.us-west-2.amazonaws.com/32/T/MT/B02.tif",
    "dlr": "https://download.geoservice.dlr.de/ENMAP/files/L2A/IMAGE_COG.TIF",
    "copernicus": "s3://eodata/Sentinel-2/MSI/L2A/B02_10m.jp2",
    "simulated": "http://127.0.0.1:8790/files/scene.tif",
    "usgs": "s3://usgs-landsat/collection02/level-1/standard/oli-tirs/2020/x/B2.TIF",
}
HOSTILE = [
    "",
    "scene.tif",
    "../../etc/passwd",
    "/etc/passwd",
    "/vsicurl/https://download.geoservice.dlr.de/x.tif",
    "/vsizip//vsicurl/https://evil.example/x.zip",
    "file:///etc/passwd",
    "ftp://download.geoservice.dlr.de/x.tif",
    "http://download.geoservice.dlr.de/x.tif",
    "https://user:secret@download.geoservice.dlr.de/x.tif",
    "https://download.geoservice.dlr.de:8443/x.tif",
    "https://download.geoservice.dlr.de.evil.example/x.tif",
    "https://evil.example/download.geoservice.dlr.de/x.tif",
    "https://download.geoservice.dlr.de@evil.example/x.tif",
    "https://download.geoservice.dlr.de\\@evil.example/x.tif",
    "https://[::1/x.tif",
    "https://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/x.tif",
    "s3://someone-elses-bucket/x.tif",
    "<VRTDataset/>",
    "https://download.geoservice.dlr.de/x.tif\nHost: evil.example",
]


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_provider_s_own_files_pass(name: str) -> None:
    check_href(load_provider(name), GOOD[name])


@pytest.mark.parametrize("bucket", ["sentinel-s2-l1c", "sentinel-s1-l1c", "usgs-landsat"])
def test_a_bucket_is_no_host(bucket: str) -> None:
    earth_search = load_provider("earth-search")
    check_href(earth_search, f"s3://{bucket}/tiles/B02.jp2")
    assert bucket in earth_search.requester_pays
    with pytest.raises(GiveUp):
        check_href(earth_search, f"https://{bucket}/tiles/B02.jp2")


@pytest.mark.parametrize("name", sorted(REMOTE))
@pytest.mark.parametrize("href", HOSTILE)
def test_everything_else_is_refused(name: str, href: str) -> None:
    with pytest.raises(GiveUp) as refusal:
        check_href(load_provider(name), href)
    assert refusal.value.failure == "refused"
    assert "secret" not in str(refusal.value)


@given(
    name=st.sampled_from(sorted(REMOTE)),
    scheme=st.sampled_from(["https", "http", "s3", "gs", "file"]),
    host=st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True),
    path=st.text(min_size=0, max_size=30),
)
def test_no_made_up_host_passes(name: str, scheme: str, host: str, path: str) -> None:
    provider = load_provider(name)
    if host in {pattern.split(":")[0] for pattern in provider.hosts}:
        return
    with pytest.raises(GiveUp):
        check_href(provider, f"{scheme}://{host}/{path}")


def test_only_the_loopback_provider_allows_plain_http() -> None:
    allowed = [name for name, entry in providers().items() if "http" in entry.schemes]
    assert allowed == ["simulated"]
    with pytest.raises(ValidationError, match="loopback"):
        Provider(name="x", title="", kind="static", hosts=("evil.example",), schemes=("http",))


def test_a_url_of_one_s_own_allows_its_host_alone() -> None:
    provider = load_provider("stac", url="https://stac.example/api")
    check_href(provider, "https://stac.example/files/x.tif")
    with pytest.raises(GiveUp):
        check_href(provider, "https://files.example/x.tif")
    elsewhere = load_provider("dlr", url="https://mirror.example/stac")
    check_href(elsewhere, GOOD["dlr"])
    with pytest.raises(GiveUp):
        check_href(elsewhere, "https://mirror.example/x.tif")


def test_the_simulated_archive_may_listen_anywhere_on_loopback() -> None:
    provider = load_provider("simulated", url="http://127.0.0.1:41234/dlr")
    check_href(provider, "http://127.0.0.1:41234/files/x.tif")
    with pytest.raises(GiveUp):
        check_href(provider, "http://127.0.0.2:41234/files/x.tif")


@pytest.mark.parametrize("url", ["http://example.org/stac", "ftp://x", "stac", "https://", "//x"])
def test_a_url_that_is_not_https_is_the_user_s_mistake(url: str) -> None:
    with pytest.raises(RecipeError):
        load_provider("stac", url=url)


def test_missing_and_unknown_providers_are_named() -> None:
    with pytest.raises(RecipeError, match="needs a `url`"):
        load_provider("stac")
    with pytest.raises(RecipeError, match="earth-search"):
        load_provider("google")


def test_a_catalogue_on_disk_gives_its_own_folder_only(tmp_path: Path) -> None:
    catalogue = tmp_path / "here" / "catalog.json"
    catalogue.parent.mkdir()
    catalogue.write_text("{}")
    provider = load_provider("static", url=str(catalogue))
    assert provider.on_disk
    check_href(provider, str(tmp_path / "here" / "tiles" / "a.tif"))
    outside = tmp_path / "elsewhere.tif"
    (catalogue.parent / "link.tif").symlink_to(outside)
    for href in (str(outside), str(catalogue.parent / "link.tif"), "a.tif", "https://a.example/a"):
        with pytest.raises(GiveUp):
            check_href(provider, href)
    with pytest.raises(RecipeError, match="does not exist"):
        load_provider("static", url=str(tmp_path / "none.json"))


def test_credentials_are_named_after_the_provider() -> None:
    assert load_provider("dlr").credentials == ("TERRASHARD_DLR_USER", "TERRASHARD_DLR_PASSWORD")
