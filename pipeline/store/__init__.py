"""The door to the disk.

objects (remote)   a folder or a bucket prefix, as whole objects under one port
layout             names of keys, and who a root belongs to
tables             Parquet tables of records
codec, metadata    the bytes of Zarr v3: chunks, shard objects, `zarr.json`
shard, commit      a shard revision, and the record that makes it exist
ledger             what became of every wanted patch; the digest of the data set
version            a published list of shard revisions
reader             `open_dataset`, for everyone who uses a data set
chunks, patches    the fast path below it; cube is the same as lazy xarray
"""
