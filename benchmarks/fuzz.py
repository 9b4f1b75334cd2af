"""Fuzz: catalogue items and image files that were damaged on purpose break nothing.

    python benchmarks/fuzz.py [--items 10000] [--files 10000] [--seed 0]

Items are real ones of every product and provider where `../shared/data` is there, and made-up ones
else; up to four places of each get something that does not belong there. Each must become a scene
or a named rejection within a second, and nothing may be opened meanwhile.

Files are small TIFFs of several layouts with spoilt bytes, cut ends, words of extreme value, or
another format's text in them. They are opened in a child process, so that a fault in a C library
is seen: a child that dies, that does not answer for 20 s, that raises anything but our own errors,
or that opens a file of a watched folder is counted. Pixels that differ from the truth are counted
apart: TIFF has no checksums. Deflated blocks have one, which `pipeline.raster.inflate` looks at and
GDAL does not always; those that slipped through are a line of their own (a spoilt directory can say
that values have an odd number of bits, and such files are left to GDAL).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import GiveUp, TryAgain
from pipeline.ports import Stat
from pipeline.products.catalogue import load_product, product_ids
from pipeline.products.model import Product
from pipeline.raster.blocks import open_asset
from pipeline.raster.windows import Window
from pipeline.records import Scene, Unusable
from pipeline.sources.providers import check_href, load_provider, providers
from pipeline.stages.search.normalise import normalise

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "stac"
HANG_S = 20.0
SLOW_ITEM_S = 1.0
#: What a child may use: a file that asks for more is to be refused, not granted.
MEMORY_BYTES = 4 * 2**30

# --- items ---------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**400, 2**63, -(2**63), 1e308, -1e-308),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "NaN",
        "1e999",
        "9" * 500,
        "x" * 10_000,
        "\x00",
        "é" * 9,
    ),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "/vsicurl/https://evil.example/x"),
    *("https://evil.example/x.tif", "https://user:secret@evil.example/", "<VRTDataset/>", "%2e%2e"),
    *("EPSG:4326", "EPSG:999999", "2022-13-45T99:99:99Z", "0000-00-00", "9999-12-31T23:59:60Z"),
    *([], {}, [[]], [None] * 6, [1e400] * 6, {"type": "Polygon"}, [[[181, 91]] * 5], ["a"] * 300),
    *([30, 0, 1e300, 0, -30, 1e300], [0] * 9, [2**31, 2**31], {"a": {"b": {"c": [{}]}}}),
)


def base_items() -> list[tuple[dict[str, Any], str, Product]]:
    """Return items with their providers and products: the recorded ones, or some made up."""
    found = []
    products = [load_product(name) for name in product_ids()]
    for path in sorted(DATA.glob("*/*.json")):
        answer = json.loads(path.read_text())["response"]
        items = answer.get("features", [answer] if answer.get("type") == "Feature" else [])
        for item in items:
            served = [p for p in products if path.parent.name in p.providers]
            mine = [p for p in served if _collection(p, path.parent.name) == item["collection"]]
            found += [(item, path.parent.name, product) for product in mine]
    return found or [(made_up(product), name, product) for product, name in _served(products)]


def _collection(product: Product, provider: str) -> str:
    return product.providers[provider].collection


def _served(products: Sequence[Product]) -> Iterator[tuple[Product, str]]:
    for product in products:
        for name in product.providers:
            if providers()[name].kind == "stac-api" and providers()[name].url:
                yield product, name


def made_up(product: Product, provider: str | None = None) -> dict[str, Any]:
    """Return an item with all files of a product; not every product accepts it as it is."""
    name = provider or next(name for p, name in _served([product]))
    facts = product.providers[name]
    grid = {
        "proj:epsg": 32633,
        "proj:shape": [1200, 1200],
        "proj:transform": [30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0],
    }
    host = next(iter(providers()[name].hosts), "files.example")
    files = {file.asset for entries in facts.assets.values() for file in entries}
    ring = [[13.1, 52.1], [13.5, 52.1], [13.5, 52.4], [13.1, 52.4], [13.1, 52.1]]
    words = dict.fromkeys(facts.properties.values(), "S2A_20220724T104526")
    return {
        "type": "Feature",
        "id": "S2A_MSIL2A_20220724T104526_N0400_R023_T33UUU_20220724T164454",
        "collection": facts.collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            **words,
            "datetime": "2022-07-24T10:45:26Z",
            "eo:cloud_cover": "9",
            "view:sun_elevation": 55.5,
        },
        "assets": {key: {"href": f"https://{host}/{key}.tif", **grid} for key in sorted(files)},
    }


def mutated(item: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a copy of an item with one to four places spoilt."""
    made = copy.deepcopy(item)
    for _ in range(rng.randint(1, 4)):
        _spoil(made, rng)
    return made


def _spoil(root: Any, rng: random.Random) -> None:
    """Go down from the root at random, and put, drop, swap or wrap what is found there."""
    place, key = root, None
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
            break
        place = inner
    if key is None:
        return
    what = rng.randrange(5)
    if what == 0 and isinstance(place, dict):
        del place[key]
    elif what == 1:
        place[key] = [place[key]] * rng.randint(1, 3)
    elif what == 2:
        place[key] = str(place[key])
    else:
        place[key] = copy.deepcopy(rng.choice(JUNK))


class Opened:
    """Counts what this process opens, connects to or starts while it watches."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.watching = False
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.watching and event in ("open", "socket.connect", "subprocess.Popen", "os.system"):
            self.seen.append(f"{event} {str(args)[:80]}")


def fuzz_items(count: int, seed: int) -> Counter[str]:
    """Return how many of so many spoilt items became what."""
    bases = base_items()
    found: Counter[str] = Counter()
    opened = Opened()
    for item, provider, product in bases:  # what is imported or read once is
        _fate(normalise(item, product, provider, None), provider)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        item, provider, product = bases[number % len(bases)]
        spoilt = mutated(item, rng)
        began_s, opened.watching = time.monotonic(), True
        try:
            row = normalise(spoilt, product, provider, None)
            found[_fate(row, provider)] += 1
        except Exception as error:
            found[f"CRASH {type(error).__name__} (item {number})"] += 1
        finally:
            opened.watching = False
        found["SLOW"] += time.monotonic() - began_s > SLOW_ITEM_S
    found["OPENED"] += len(opened.seen)
    return +found


def _fate(row: Scene | Unusable, provider: str) -> str:
    if isinstance(row, Unusable):
        return f"rejected: {row.reason}"
    try:
        for asset in row.assets:
            check_href(load_provider(provider), asset.href)
    except GiveUp:
        return "rejected: refused-href"
    if not (row.x_min_m < row.x_max_m and row.y_min_m < row.y_max_m):
        return "CRASH a scene without an area"
    return "scene"


# --- files ---------------------------------------------------------------------------------------

WINDOWS = [Window(0, 0, 96, 96), Window(40, 33, 20, 50)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "deflate": {"compress": "deflate", "predictor": 2},
    "deflate-pixel": {"compress": "deflate", "interleave": "pixel"},
    "lzw": {"compress": "lzw", "predictor": 2},
    "zstd": {"compress": "zstd"},
    "plain": {},
    "bigtiff": {"compress": "deflate", "bigtiff": "yes"},
    "strips": {"compress": "deflate", "tiled": False},
}
EXTREME = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def truth() -> np.ndarray:
    """Return the pixels (band, y, x) of every file."""
    y, x = np.mgrid[0:96, 0:96]
    noise = np.random.default_rng(0).integers(0, 50, (3, 96, 96))
    return (np.stack([x * 20 + y, x + y * 7, 3 * x * y % 997]) + noise).astype("uint16")


def write_bases(folder: Path) -> dict[str, bytes]:
    """Write one file of each layout, and return their bytes."""
    import rasterio
    from rasterio.transform import Affine

    pixels, made = truth(), {}
    for name, options in LAYOUTS.items():
        path = folder / f"{name}.tif"
        profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, **options}
        if not profile["tiled"]:
            profile = {**options, "blockysize": 16}
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=96,
            height=96,
            count=3,
            dtype="uint16",
            crs="EPSG:32633",
            transform=Affine(30, 0, 300_015, 0, -30, 5_000_025),
            **profile,
        ) as file:
            file.write(pixels)
        made[name] = path.read_bytes()
    return made


def damaged(data: bytes, rng: random.Random, secret: str) -> bytes:
    """Return a file with bytes spoilt; headers and directories more often than pixels."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        what = rng.randrange(8)
        near = 16 if rng.random() < 0.2 else 1200 if rng.random() < 0.6 else len(made)
        at = rng.randrange(max(1, min(near, len(made) - 8)))
        if what <= 2:
            made[at] ^= 1 << rng.randrange(8)
        elif what == 3:
            made[at : at + 4] = struct.pack("<I", rng.choice(EXTREME))
        elif what == 4:
            made[at : at + 2] = struct.pack("<H", rng.choice(EXTREME) & 0xFFFF)
        elif what == 5:
            del made[at + 1 :]
        elif what == 6:
            made[at : at + 8] = rng.randbytes(8)
        else:
            text = f'<VRTDataset rasterXSize="9" rasterYSize="9"><SourceFilename>{secret}'.encode()
            made[at : at + len(text)] = text
    return bytes(made)


class Memory:
    """A file in memory as `pipeline.ports.ByteSource`."""

    requests = 0

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stat(self, _href: str) -> Stat:
        return Stat(len(self._data), None)

    def ranges(self, href: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if any(not 0 <= start <= stop <= len(self._data) for start, stop in ranges):
            raise GiveUp(f"{href} ends before that.", failure="truncated")
        return [self._data[start:stop] for start, stop in ranges]


def read_one(data: bytes, expected: np.ndarray) -> str:
    """Return what became of a file."""
    try:
        with open_asset(Memory(data), "memory.tif", threads=1) as raster:
            indexes = range(1, min(raster.count, 3) + 1)
            found = raster.read(list(indexes), WINDOWS, fill=0)
            same = raster.count == 3 and (raster.width, raster.height) == (96, 96)
    except (GiveUp, TryAgain) as error:
        return f"refused: {error.failure}"
    except Exception as error:
        return f"CRASH {type(error).__name__}: {str(error)[:80]}"
    if not same:
        return "another raster"
    for window, pixels in zip(WINDOWS, found, strict=True):
        rows = slice(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        if not np.array_equal(pixels, expected[:, rows, cols]):
            return "wrong pixels, in a spoilt zlib stream" if _told(data) else "wrong pixels"
    return "right pixels"


def _told(data: bytes) -> bool:
    """Whether a deflated block's own checksum says that it is spoilt, the directory being whole."""
    import rasterio

    with rasterio.MemoryFile(data) as file, file.open() as handle:
        if handle.compression is None or handle.compression.value != "DEFLATE":
            return False
        for band in handle.indexes:
            for (row, col), _ in handle.block_windows(band):
                start, size = (
                    handle.get_tag_item(f"BLOCK_{word}_{col}_{row}", "TIFF", bidx=band)
                    for word in ("OFFSET", "SIZE")
                )
                if start is None or size is None:
                    continue
                try:
                    zlib.decompress(data[int(start) : int(start) + int(size)])
                except zlib.error:
                    return True
    return False


def child(folder: Path, first: int, last: int, seed: int) -> None:
    """Read files one by one, and say before each which one, and after it what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bases = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.tif"))}
    names, expected, opened = sorted(bases), truth(), Opened()
    read_one(bases["plain"], expected)  # what GDAL reads once, it has read
    for number in range(first, last):
        print(f"try {number}", flush=True)
        rng = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        data = damaged(bases[name], rng, str(folder / "secret" / "secret.tif"))
        opened.watching = True
        fate = read_one(data, expected)
        opened.watching = False
        strays = [event for event in opened.seen if "secret" in event or "socket" in event]
        opened.seen.clear()
        print(f"end {name}: {fate}{' READ OUTSIDE' if strays else ''}", flush=True)


class Watch:
    """Tells whether a file of a folder was opened by anybody, C libraries included (inotify)."""

    IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._handle = library.inotify_init1(self.IN_NONBLOCK)
        mask = self.IN_ACCESS | self.IN_OPEN
        if self._handle < 0 or library.inotify_add_watch(self._handle, bytes(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify is not to be had")

    def events(self) -> int:
        """Return how many there were since the last call."""
        try:
            return len(os.read(self._handle, 2**16)) // 16
        except BlockingIOError:
            return 0


def fuzz_files(count: int, seed: int) -> Counter[str]:
    """Return how many of so many damaged files became what, by layout and together."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bases = write_bases(folder)
        (folder / "secret").mkdir()
        (folder / "secret" / "secret.tif").write_bytes(bases["plain"])
        watch, number = Watch(folder / "secret"), 0
        while number < count:
            number = _one_child(folder, number, count, seed, found)
        found["READ OUTSIDE"] += watch.events()
    return +found


def _one_child(folder: Path, first: int, last: int, seed: int, found: Counter[str]) -> int:
    """Let a child read until it is done or dies; return which file is next."""
    command = [sys.executable, __file__, "--child", str(folder), str(first), str(last), str(seed)]
    number = first
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        while select.select([process.stdout], [], [], HANG_S)[0]:
            line = process.stdout.readline()
            if not line:
                break
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "try":
                number = int(rest)
            elif word == "end":
                number += 1
                found[rest.partition(": ")[2]] += 1
        else:
            process.kill()
            found[f"HANG (file {number})"] += 1
            return number + 1
        process.wait()
        if process.returncode == 0:
            return last
        found[f"CRASH: the child died with {process.returncode} (file {number})"] += 1
        return number + 1


# --- together ------------------------------------------------------------------------------------


def bad(found: Counter[str]) -> list[str]:
    """Return the outcomes that must not be."""
    marks = ("CRASH", "HANG", "SLOW", "OPENED", "OUTSIDE")
    return [name for name in found if any(mark in name for mark in marks)]


def table(title: str, found: Counter[str], seconds: float) -> str:
    rows = "\n".join(f"| {name} | {number:,} |" for name, number in sorted(found.items()))
    return f"| {title} ({seconds:.0f} s) | |\n|---|---|\n{rows}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, *numbers = options.child
        child(Path(folder), *map(int, numbers))
        return 0
    wrong: list[str] = []
    for title, count, fuzz in (
        ("items", options.items, fuzz_items),
        ("files", options.files, fuzz_files),
    ):
        began_s = time.monotonic()
        found = fuzz(count, options.seed)
        print(table(f"{count:,} damaged {title}", found, time.monotonic() - began_s), end="\n\n")
        wrong += bad(found)
    print("what must not be: " + ("; ".join(wrong) or "nothing"))
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
