"""Items from STAC: search APIs, static catalogues, tables."""
