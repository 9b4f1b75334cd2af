"""The foremen: one file per command; they join recipe, engine, stages and store."""
