"""The facts: one TOML file per product (a sensor at a processing level), each number sourced.

`catalogue` reads and checks them. Adding a sensor is adding a file; code grows only where the
world really differs.
"""
