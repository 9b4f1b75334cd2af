"""Batches are what their steps say, whatever the threads, the processes and the storage."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain.data.batches import AHEAD, Share, Stored, stream
from pipeline.pretrain.data.order import Mixed, OneProduct, Order, pairs_of_products, times_or_views
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset


@pytest.fixture
def readers(published):
    dataset = open_dataset(published.store)
    return {product: dataset.patches(product) for product in ("image", "labels")}


def picks(readers, *, times=True, batch_size=6):
    image = {"image": readers["image"]}
    return times_or_views(image, views=2, times=times, batch_size=batch_size, seed=3)


def kept(batches):
    """Copies: a batch lies in memory that is used again."""
    return [
        [Stored(view.bands.clone(), view.mask.clone(), view.product) for view in batch]
        for batch in batches
    ]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(one.bands, other.bands)
        and torch.equal(one.mask, other.mask)
        and one.product == other.product
        for batch, others in zip(first, second, strict=True)
        for one, other in zip(batch, others, strict=True)
    )


def test_streamed_batches_are_those_of_their_picks(readers):
    chosen = picks(readers)
    streamed = kept(stream(readers, chosen, start=2, stop=7, threads=2))
    assert len(streamed) == 5
    for step, batch in enumerate(streamed, 2):
        for view, pick in zip(batch, chosen.picks(step), strict=True):
            bands, mask = readers["image"].read(pick.numbers)
            assert (view.bands.numpy() == bands).all()
            assert (view.mask.numpy() == mask).all()


@pytest.mark.parametrize("threads", [1, 5])
def test_neither_threads_nor_where_it_begins_change_a_batch(readers, threads):
    chosen = picks(readers)
    whole = kept(stream(readers, chosen, start=0, stop=9, threads=3))
    assert same(kept(stream(readers, chosen, start=0, stop=9, threads=threads)), whole)
    # A run that is resumed in the middle of an epoch knows the step, and needs nothing else.
    assert readers["image"].rows.num_rows % 6
    assert same(kept(stream(readers, picks(readers), start=5, stop=9, threads=threads)), whole[5:])


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_the_batches_that_one_would_have(readers, ranks):
    whole = kept(stream(readers, picks(readers), start=0, stop=4, threads=2))
    shares = [
        kept(stream(readers, picks(readers), start=0, stop=4, threads=2, share=Share(rank, ranks)))
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        for number, view in enumerate(batch):
            parts = torch.cat([share[step][number].bands for share in shares])
            assert torch.equal(parts, view.bands)


def test_a_batch_that_cannot_be_shared_equally_is_refused(readers):
    uneven = stream(readers, picks(readers), start=0, stop=1, threads=1, share=Share(0, 4))
    with pytest.raises(RecipeError, match=r"6 items.*by 4 processes"):
        next(uneven)


def test_two_views_of_a_patch_are_decoded_once(readers):
    for batch in stream(readers, picks(readers, times=False), start=0, stop=3, threads=2):
        assert batch[0] is batch[1]


def test_memory_is_set_out_once(readers):
    places = [
        batch[0].bands.data_ptr()
        for batch in stream(readers, picks(readers), start=0, stop=20, threads=2)
    ]
    assert len(set(places)) == AHEAD + 1


def test_a_patch_that_is_wanted_twice_comes_twice(readers):
    reader = readers["image"]
    bands, mask = reader.read([4, 1, 4, 0, 1, 4])
    wanted_bands, wanted_mask = reader.read([0, 1, 4])
    assert (bands == wanted_bands[[2, 1, 2, 0, 1, 2]]).all()
    assert (mask == wanted_mask[[2, 1, 2, 0, 1, 2]]).all()


def test_a_bucket_gives_the_same_batches(published, readers, bucket):
    remote = open_store(bucket("batches"))
    for key in published.store.list():
        remote.put(key, published.store.get(key))
    dataset = open_dataset(remote)
    there = {product: dataset.patches(product) for product in readers}
    for choose in (picks, lambda r: pairs_of_products(r, batch_size=4, seed=1)):
        chosen = choose(there)
        found = kept(stream(there, chosen, start=3, stop=9, threads=2))
        assert same(found, kept(stream(readers, chosen, start=3, stop=9, threads=2)))


def test_a_damaged_shard_stops_the_stream_with_its_name(published):
    # Opened anew: a reader that knew the shard's index would not look at it again.
    key = next(key for key in published.store.list("shards") if "/image/bands/" in key)
    published.store.put(key, published.store.get(key)[:-30])
    reader = {"image": open_dataset(published.store).patches("image")}
    with pytest.raises(IntegrityError, match="shards/"):
        list(stream(reader, picks(reader), start=0, stop=3, threads=2))


def test_a_stream_may_be_left_in_the_middle(readers):
    before = set(threading.enumerate())
    endless = stream(readers, picks(readers), start=0, stop=10**9, threads=2)
    next(endless)
    # Threads that decode belong to the reader, which goes on.
    working = {t for t in threading.enumerate() if t.name.startswith("batches")} - before
    assert working
    endless.close()
    for thread in working:
        thread.join(timeout=10)
        assert not thread.is_alive(), "it goes on after the stream"


def test_a_pair_of_products_is_of_one_location_and_slot(readers):
    chosen = pairs_of_products(readers, batch_size=5, seed=0)
    rows = {product: reader.rows for product, reader in readers.items()}
    epoch = [chosen.picks(step) for step in range(5)][:4]
    for pair in epoch:
        assert [pick.product for pick in pair] == ["image", "labels"]
        for column in ("location", "slot"):
            first, second = (rows[p.product][column].take(p.numbers).to_pylist() for p in pair)
            assert first == second
    together = np.concatenate([pair[0].numbers for pair in epoch])
    assert len(set(readers["image"].sample_row[together])) == 20, "locations are the items"


def test_products_without_a_common_slot_cannot_be_paired(published):
    dataset = open_dataset(published.store)
    apart = {
        "image": dataset.sel(slot="2021-02").patches("image"),
        "labels": dataset.patches("labels"),
    }
    with pytest.raises(RecipeError, match="image and labels at the same slot"):
        pairs_of_products(apart, batch_size=2, seed=0)


def mixed(items=(12, 29), batch_size=4, seed=1):
    parts = tuple(
        OneProduct(name, Order(np.arange(n), views=1, batch_size=batch_size, seed=seed), 2)
        for name, n in zip("ab", items, strict=True)
    )
    return Mixed(parts, seed=seed)


def test_mixed_products_take_turns_in_proportion_to_their_items():
    products = [mixed().picks(step)[0].product for step in range(100)]
    assert products.count("a") == 30
    assert len({tuple(products[k : k + 10]) for k in range(0, 100, 10)}) > 5
    assert all(products[k : k + 10].count("a") == 3 for k in range(0, 100, 10))


def test_every_item_of_mixed_products_comes_up_once_an_epoch():
    found = {"a": [], "b": []}
    for step in range(200):
        pick = mixed().picks(step)[0]
        found[pick.product] += pick.numbers.tolist()
    for name, items in (("a", 12), ("b", 29)):
        epochs = np.array(found[name][: len(found[name]) // items * items]).reshape(-1, items)
        assert (np.sort(epochs) == np.arange(items)).all()


def test_a_mixed_step_depends_on_nothing_but_its_number():
    straight = [mixed().picks(step) for step in range(30)]
    jumping = mixed()
    for step in np.random.default_rng(0).permutation(30):
        for one, other in zip(jumping.picks(int(step)), straight[step], strict=True):
            assert one.product == other.product
            assert (one.numbers == other.numbers).all()
