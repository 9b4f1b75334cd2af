"""Plan: which scenes may fill which slot of which place, and in which shard."""
