"""Write the JSON Schemas: of the recipe, of product files, and of every table's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.products.model import Product
from pipeline.recipe import Recipe
from pipeline.store.tables import json_schemas

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_files() -> dict[str, str]:
    """Return file name to text of every schema."""
    schemas: dict[str, dict[str, Any]] = {
        "recipe": Recipe.model_json_schema(),
        "product": Product.model_json_schema(),
        **json_schemas(),
    }
    return {
        f"{name}.schema.json": json.dumps({"$schema": DIALECT, **schema}, indent=2) + "\n"
        for name, schema in schemas.items()
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema into a folder and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in schema_files().items():
        (folder / name).write_text(text)
        paths.append(folder / name)
    return paths
