"""The door to the disk: objects, layout, tables, shards, commits, ledger, reader."""
