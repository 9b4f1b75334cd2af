"""Every store keeps the same promises: one suite, a folder and a bucket."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, RecipeError, TryAgain
from pipeline.ports import ObjectStore
from pipeline.store.objects import LocalStore, open_store
from pipeline.store.remote import RemoteStore

HOSTILE = ["../x", "/etc/passwd", "a/../../x", "a//b", "", "a/", "./a", "a\\b", "a\nb", "a\0b"]


class StoreSuite:
    """What `pipeline.ports.ObjectStore` promises; subclasses give the fixture `store`."""

    def test_an_object_comes_back_as_it_was_put(self, store: ObjectStore) -> None:
        store.put("a/b/c", b"hello")
        assert store.get("a/b/c") == b"hello"
        assert store.size("a/b/c") == 5

    def test_an_object_may_be_given_in_parts(self, store: ObjectStore) -> None:
        parts = [bytes([k % 251]) * 3000 for k in range(2000)]
        store.put("parts", iter(parts))
        assert store.get("parts") == b"".join(parts)
        store.put("none", [])
        assert store.get("none") == b""

    def test_put_replaces_and_create_does_not(self, store: ObjectStore) -> None:
        store.put("x", b"1")
        store.put("x", b"22")
        assert store.create("x", b"3") is False
        assert store.get("x") == b"22"
        assert store.create("y", b"4") is True
        assert store.get("y") == b"4"

    def test_ranges_come_back_in_the_order_asked(self, store: ObjectStore) -> None:
        store.put("r", bytes(range(100)))
        found = store.get_ranges("r", [(90, 100), (0, 3), (5, 5), (0, 100)])
        assert found == [bytes(range(90, 100)), bytes(range(3)), b"", bytes(range(100))]
        assert store.get_ranges("r", []) == []

    def test_a_range_beyond_the_end_is_an_error_and_not_a_short_answer(
        self, store: ObjectStore
    ) -> None:
        store.put("r", b"12345")
        with pytest.raises(IntegrityError, match="ends before byte 9"):
            store.get_ranges("r", [(3, 9)])

    def test_what_is_not_there_is_a_key_error(self, store: ObjectStore) -> None:
        for call in (store.get, store.size, lambda key: store.get_ranges(key, [(0, 1)])):
            with pytest.raises(KeyError):
                call("nothing/here")

    def test_list_is_sorted_and_goes_by_whole_folders(self, store: ObjectStore) -> None:
        for key in ("a/b", "a-b", "a/c/d", "ab/x", "z"):
            store.put(key, b"")
        assert list(store.list()) == sorted(["a/b", "a-b", "a/c/d", "ab/x", "z"])
        assert list(store.list("a")) == ["a/b", "a/c/d"]
        assert list(store.list("a/")) == ["a/b", "a/c/d"]
        assert list(store.list("nothing")) == []

    def test_delete_is_silent_about_what_is_gone(self, store: ObjectStore) -> None:
        store.put("x", b"1")
        store.delete("x")
        store.delete("x")
        assert list(store.list()) == []

    @pytest.mark.parametrize("key", HOSTILE)
    def test_hostile_keys_are_refused_everywhere(self, store: ObjectStore, key: str) -> None:
        for call in (
            store.get,
            store.size,
            store.delete,
            lambda k: store.put(k, b"x"),
            lambda k: store.create(k, b"x"),
            lambda k: store.get_ranges(k, [(0, 1)]),
        ):
            with pytest.raises(IntegrityError, match="not the key of an object"):
                call(key)
        assert list(store.list()) == []

    def test_of_many_creators_one_wins(self, store: ObjectStore) -> None:
        won: list[int] = []
        start = threading.Barrier(8)

        def create(number: int) -> None:
            start.wait()
            if store.create("prize", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get("prize") == str(won[0]).encode()

    def test_names_beyond_ascii_survive(self, store: ObjectStore) -> None:
        store.put("orte/São Paulo 100%+é", b"1")
        assert list(store.list("orte")) == ["orte/São Paulo 100%+é"]
        assert store.get("orte/São Paulo 100%+é") == b"1"


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return open_store(tmp_path / "root")

    def test_a_failed_put_leaves_nothing(self, store: ObjectStore, tmp_path: Path) -> None:
        def broken() -> Iterator[bytes]:
            yield b"first"
            raise OSError("source went away")

        store.put("x", b"old")
        with pytest.raises(OSError, match="went away"):
            store.put("x", broken())
        assert store.get("x") == b"old"
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["x"]

    def test_more_parts_than_one_system_call_takes(self, store: ObjectStore) -> None:
        store.put("x", (b"ab" for _ in range(5000)))
        assert store.get("x") == b"ab" * 5000

    def test_file_url_is_the_same_folder(self, tmp_path: Path) -> None:
        open_store(f"file://{tmp_path}").put("x", b"1")
        assert open_store(tmp_path).get("x") == b"1"


class TestRemoteStore(StoreSuite):
    @pytest.fixture
    def store(self, bucket: Callable[[str], str], request: pytest.FixtureRequest) -> ObjectStore:
        name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
        opened = open_store(bucket(name))
        assert isinstance(opened, RemoteStore)
        return opened

    def test_a_large_object_goes_up_in_parts(self, store: ObjectStore) -> None:
        part = bytes(range(256)) * 4096
        store.put("large", (part for _ in range(40)))
        assert store.size("large") == 40 * len(part)
        assert store.get_ranges("large", [(39 * len(part), 40 * len(part))]) == [part]

    def test_a_bucket_that_is_not_there_is_no_half_success(
        self, bucket: Callable[[str], str]
    ) -> None:
        store = open_store("s3://no-such-bucket/x")
        with pytest.raises((KeyError, TryAgain)):
            store.put("x", b"1")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(RecipeError, match="was s3://bucket/x meant"):
        open_store("s3:/bucket/x")
    with pytest.raises(RecipeError, match="unknown scheme 'ftp'"):
        open_store("ftp://somewhere/x")


LOOP = """
import sys
from pipeline.store.objects import open_store
store = open_store(sys.argv[1])
parts = [bytes([k]) * 65536 for k in range(64)]
print("ready", flush=True)
number = 0
while True:
    store.put(f"object/{number % 3}", parts)
    store.create(f"created/{number}", parts[number % 64])
    number += 1
"""


def test_a_killed_writer_never_leaves_a_half_object(tmp_path: Path) -> None:
    whole = b"".join(bytes([k]) * 65536 for k in range(64))
    store = LocalStore(tmp_path)
    for kill in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + 0.03 * kill)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for key in store.list("object"):
            assert store.get(key) == whole
        for key in store.list("created"):
            data = store.get(key)
            assert data == data[:1] * 65536
    assert list(store.list("object"))
    for number in range(3):
        store.put(f"object/{number}", whole)
    left = list((tmp_path / "object").glob(".tmp-*"))
    assert left == [], "the next writer of a key removes what a killed one left"
