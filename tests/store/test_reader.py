"""The reader gives back what was written, fast path and slow path alike."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from pipeline.errors import IntegrityError, RecipeError
from pipeline.run.publish import run_publish
from pipeline.store import chunks, layout
from pipeline.store.reader import Dataset, open_dataset
from pipeline.store.shard import image_key


@pytest.fixture
def published(small):
    run_publish(small.loaded, small.store)
    return small


def check_against_truth(ds: Dataset, truth: dict) -> None:
    found = 0
    for product in ds.products:
        reader = ds.patches(product)
        bands, mask = reader.read(slice(None))
        for i, row in enumerate(reader.rows.to_pylist()):
            true_bands, true_mask = truth[row["location"], product, row["slot"]]
            np.testing.assert_array_equal(bands[i], true_bands)
            np.testing.assert_array_equal(mask[i], true_mask)
            found += 1
    assert found == len(truth)


def check_parity(ds: Dataset) -> None:
    for product in ds.products:
        reader = ds.patches(product)
        bands, mask = reader.read(slice(None), threads=3)
        for i in range(len(reader)):
            slow_bands, slow_mask = reader.slow_read(i)
            np.testing.assert_array_equal(bands[i], slow_bands)
            np.testing.assert_array_equal(mask[i], slow_mask)


def test_every_patch_comes_back(published) -> None:
    check_against_truth(open_dataset(published.url), published.truth)


def test_the_fast_path_and_zarr_python_agree(published) -> None:
    check_parity(open_dataset(published.url))


def test_chunks_are_decoded_where_they_lie_from_few_objects_at_a_time(
    published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAPPED_BYTES", 1)
    monkeypatch.setattr(chunks, "MOST_MAPS", 1)
    ds = open_dataset(published.url)
    check_parity(ds)
    check_against_truth(ds, published.truth)
    reader = ds.patches("optical")
    with Path(reader._arrays["bands"].path(0)).open("rb") as file:
        told = chunks._in_memory(file.fileno(), 0, 10)  # not every file system tells
    maps = len(reader._decoder._maps)
    assert 1 <= maps <= 2 if told else maps == 0  # two threads may each have opened the last one


def test_an_object_that_was_cut_short_is_an_error_and_no_end_of_the_process(
    published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAPPED_BYTES", 1)
    reader = open_dataset(published.url).patches("optical")
    for array in reader._arrays.values():  # the index is known, so only the chunks are missed
        for shard in range(len(array.objects)):
            array.locate(shard, 0)
            path = Path(array.path(shard))
            if path.exists():
                path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(IntegrityError, match="ends before byte"):
        reader.read(slice(None))


def test_a_bucket_reads_like_a_folder(
    published, bucket: Callable[[str], str], tmp_path: Path
) -> None:
    from pipeline.store.objects import open_store

    url = bucket("reader")
    remote = open_store(url)
    for key in published.store.list():
        remote.put(key, published.store.get(key))
    ds = open_dataset(url)
    check_against_truth(ds, published.truth)
    check_parity(ds)


def test_a_sample_is_a_location_with_all_its_times(published) -> None:
    ds = open_dataset(published.url)
    assert len(ds) == 5, "one of six locations was rejected"
    assert ds.products == ("optical", "labels")
    seen = set()
    for sample in ds:
        seen.add(sample["location"])
        for product, shape in (("optical", (3, 16, 16)), ("labels", (1, 8, 8))):
            part = sample[product]
            assert part["bands"].shape == (len(part["slot"]), *shape)
            assert part["acquired"] == sorted(part["acquired"])
            for time, slot in enumerate(part["slot"]):
                truth = published.truth[sample["location"], product, slot]
                np.testing.assert_array_equal(part["bands"][time], truth[0])
                np.testing.assert_array_equal(part["mask"][time], truth[1])
    assert len(seen) == 5
    assert [s["location"] for s in ds[1:3]] == [ds[1]["location"], ds[2]["location"]]
    assert ds[-1]["location"] == ds[4]["location"]
    with pytest.raises(IndexError):
        ds[5]


def test_samples_are_in_the_order_of_their_draws(published) -> None:
    rows = open_dataset(published.url).index.to_pylist()
    assert [r["row"] for r in rows] == sorted(r["row"] for r in rows)
    assert rows[0]["location"] == "33N-s2r10-16-00005-00007", "the last cell has the first draw"


def test_selections_narrow_down(published) -> None:
    ds = open_dataset(published.url)
    assert ds.sel(product="labels").products == ("labels",)
    assert set(ds.sel(slot="2021-02").index["slot"].to_pylist()) == {"2021-02"}
    one = ds[2]["location"]
    assert [s["location"] for s in ds.sel(location=one)] == [one]
    parts = [len(ds.sel(split=p)) for p in set(ds.index["split"].to_pylist())]
    assert sum(parts) == len(ds)
    narrow = ds.sel(slot="2021-02", product="optical")
    check_parity(narrow)
    with pytest.raises(RecipeError, match="no patch of slot '1999'; there are: 2021-01"):
        ds.sel(slot="1999")


def test_reading_takes_any_order_repeats_and_given_memory(published) -> None:
    reader = open_dataset(published.url).patches("optical")
    whole, whole_mask = reader.read(slice(None))
    which = [3, 0, 3, -1]
    out = np.zeros((4, *reader.shape), reader.dtype)
    mask_out = np.zeros((4, *reader.shape[1:]), "uint8")
    bands, mask = reader.read(which, out=out, mask_out=mask_out, threads=1)
    assert bands is out
    assert mask is mask_out
    np.testing.assert_array_equal(out, whole[which])
    np.testing.assert_array_equal(mask_out, whole_mask[which])
    assert reader.read([])[0].shape == (0, *reader.shape)
    np.testing.assert_array_equal(reader.read_image("mask", which), whole_mask[which])
    np.testing.assert_array_equal(reader.read_image("mask_native", [1]), whole_mask[[1]] + 1)
    with pytest.raises(IndexError):
        reader.read([len(reader)])
    with pytest.raises(ValueError, match="memory of"):
        reader.read([0], out=out)


def test_facts_of_the_product_are_there(published) -> None:
    reader = open_dataset(published.url).patches("optical")
    assert reader.bands == ("red", "nir", "swir")
    assert reader.wavelength_nm == (600.0, 800.0, 1000.0)
    assert (reader.scale, reader.offset, reader.fill) == (0.0001, 0.0, -32768.0)
    assert reader.dtype == np.dtype("int16")
    locations = reader.rows["location"].to_pylist()
    for i in range(len(reader)):
        for j in range(len(reader)):
            assert (locations[i] == locations[j]) == (reader.sample_row[i] == reader.sample_row[j])


def test_statistics_are_those_of_the_training_pixels(published) -> None:
    ds = open_dataset(published.url)
    train = ds.sel(split="train").patches("optical").read(slice(None))[0].astype("float64")
    mean, std, count = ds.statistics("optical")
    np.testing.assert_allclose(mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, train.std(axis=(0, 2, 3)), rtol=1e-12)
    assert count.tolist() == [train[:, 0].size] * 3
    everything = ds.patches("optical").read(slice(None))[0]
    assert everything.shape[0] > train.shape[0]
    with pytest.raises(RecipeError, match="no statistics of 'radar'"):
        ds.statistics("radar")


def test_xarray_is_lazy_and_agrees(published) -> None:
    ds = open_dataset(published.url)
    cube = ds.to_xarray("optical")
    assert dict(cube.sizes) == {"sample": 5, "time": 2, "band": 3, "y": 16, "x": 16}
    shard = next(
        k for k in published.store.list("shards") if k.endswith(image_key("optical", "bands"))
    )
    data = published.store.get(shard)
    published.store.delete(shard)
    cube["acquired"].values, cube["location"].values
    published.store.put(shard, data)
    for s, location in enumerate(cube["location"].values.tolist()):
        for t, slot in enumerate(cube["slot"].values[s].tolist()):
            if not slot:
                assert (cube["bands"][s, t] == -32768).all()
                assert np.isnat(cube["acquired"].values[s, t])
                continue
            bands, mask = published.truth[location, "optical", slot]
            np.testing.assert_array_equal(cube["bands"][s, t], bands)
            np.testing.assert_array_equal(cube["mask"][s, t], mask)
            np.testing.assert_array_equal(
                cube["bands"].sel(band="nir")[s, t, 2:5, ::-1], bands[1, 2:5, ::-1]
            )
    picked = cube["bands"][[3, 1], :, 1:, [4, 2]]
    np.testing.assert_array_equal(picked, cube["bands"].values[[3, 1]][:, :, 1:][:, :, :, [4, 2]])
    assert cube["bands"].attrs["nodata"] == -32768
    assert cube["mask"].attrs["legend"]["cloud"] == 5
    cells = {row["location"]: row for row in ds.index.to_pylist()}
    for s, location in enumerate(cube["location"].values.tolist()):
        for name in ("epsg", "x_min_m", "y_max_m", "lon_deg", "lat_deg", "split"):
            assert cube[name].values[s] == cells[location][name]
    with pytest.raises(RecipeError, match="name one product"):
        ds.to_xarray()
    assert ds.sel(product="labels").to_xarray()["bands"].dtype == np.dtype("uint8")


def _checksum(reader) -> int:
    return int(reader.read(slice(None))[0].sum())


def test_readers_go_to_other_processes(published) -> None:
    reader = open_dataset(published.url).patches("optical")
    here = _checksum(reader)
    assert _checksum(pickle.loads(pickle.dumps(reader))) == here


def test_damage_is_an_error_and_never_pixels(published) -> None:
    key = f"shards/p000001-s00000/r1/{image_key('optical', 'bands')}"
    data = published.store.get(key)

    def read() -> None:
        open_dataset(published.url).patches("optical").read(slice(None))

    published.store.delete(key)
    with pytest.raises(IntegrityError, match="is gone"):
        read()
    published.store.put(key, data[:-1])
    with pytest.raises(IntegrityError, match="checksum"):
        read()
    published.store.put(key, data[:3])
    with pytest.raises(IntegrityError, match="index alone"):
        read()
    published.store.put(key, data[:4] + b"\xff\xff\xff\x7f" + data[8:])
    with pytest.raises(IntegrityError, match="a chunk of"):
        read()


def test_versions_are_chosen_by_number(published, tmp_path: Path) -> None:
    assert open_dataset(published.store, version=1).version.number == 1
    with pytest.raises(RecipeError, match="no version 7; published are: 1"):
        open_dataset(published.url, version=7)
    with pytest.raises(RecipeError, match="no published version"):
        open_dataset(tmp_path / "nothing")
    published.store.put(layout.version(2), b'{"format": 1, "number": 2}')
    with pytest.raises(IntegrityError, match="no manifest"):
        open_dataset(published.url)


def test_times_are_utc(published) -> None:
    acquired = open_dataset(published.url)[0]["optical"]["acquired"][0]
    assert isinstance(acquired, datetime)
    assert acquired.utcoffset() is not None
    assert acquired.utcoffset().total_seconds() == 0


def test_under_the_names_of_ssl4eo_s12_a_loader_of_it_reads_the_same_patches(
    published, tmp_path
) -> None:
    ds = open_dataset(published.url)
    own, theirs = ds.to_xarray("optical"), ds.to_xarray("optical", names="ssl4eo-s12")
    there = own["bands"].values != -32768
    moved = theirs["bands"].values
    assert moved.dtype == np.dtype("int16")
    np.testing.assert_array_equal(
        moved[there], np.minimum(own["bands"].values[there] + 1000, 32767)
    )
    assert (moved[~there] == -32768).all()
    wanted = np.array([6, 0, 1, 2, 3, 4, 5, 6, 0])[own["mask"].values]
    np.testing.assert_array_equal(theirs["cloud_mask"], wanted)
    row = ds.index.to_pylist()[0]
    assert (theirs["center_lon"][0], theirs["crs"][0]) == (row["lon_deg"], row["epsg"])
    assert theirs["x_"][0, 0] == row["x_min_m"] + 5
    assert theirs["y_"][0, -1] == row["y_max_m"] - 155
    assert theirs["file_id"].values[0, 0] == row["scenes"][0]
    assert theirs["sample_id"].values[1].tolist() == ["0000001_0", "0000001_1"]
    # As that data set is kept and opened: Zarr format 2 in a zip archive.
    theirs.to_zarr(tmp_path / "group", zarr_format=2, consolidated=False)
    path = shutil.make_archive(str(tmp_path / "data_000001.zarr"), "zip", tmp_path / "group")
    with zarr.storage.ZipStore(path, mode="r") as store:
        again = xr.open_zarr(store, consolidated=False)
        np.testing.assert_array_equal(again["bands"].isel(time=1).values, moved[:, 1])
        np.testing.assert_array_equal(again["time_"].values, theirs["time_"].values)
