"""Progress for people: live bars on a terminal, plain log lines elsewhere."""
