"""Let a process keep the memory that one patch leaves for the next.

The C library hands large blocks back to the system at once, and the next patch gets them back page
by page, each of them cleared anew; Dask's workers are even told to trim at 64 KiB. Over a quarter
of the processor time of a Sentinel-2 shard went there.
"""

from __future__ import annotations

import ctypes
from functools import cache

#: `mallopt` parameters and the values given to them. Source: glibc, `malloc.h`; the threshold is
#: the largest that glibc takes (HEAP_MAX_SIZE / 2), so patches are kept and decoded blocks are not.
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 2**30
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**25


@cache
def keep_memory() -> bool:
    """Tell the C library, once a process; False where it is none that can be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) and kept)
