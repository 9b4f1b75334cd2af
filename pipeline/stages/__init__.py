"""The corridor: what each stage decides, as pure functions from tables to tables."""
