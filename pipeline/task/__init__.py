"""What one worker does with one shard: read, decide, write. The entry is `shard.build_shard`."""
