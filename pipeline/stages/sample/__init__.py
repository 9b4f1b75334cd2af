"""Sample: which cells of ground a data set is about."""
