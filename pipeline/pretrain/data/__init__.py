"""From shards to batches on the device: order, pairs, views, normalisation."""
