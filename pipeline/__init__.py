"""Terrashard: satellite archives in, multi-temporal Zarr shards and pretrained models out.

The map of the house. Each floor imports only the floors below it (checked by `make lint`)::

    cli          the front door: one command per stage, no decisions
    run          the foremen: one file per command; join recipe, engine, stages and store
    evaluate     annex (torch): features, probes, baselines, report
    pretrain     annex (torch): batches, augmentation, backbones, methods, training
    simulate     a simulated archive: scenes, STAC API, file server, shards without scenes
    task         what one worker does with one shard: read, decide, write
    stages       the corridor, pure: sample, search, plan, extract, publish (tables in, tables out)
    sources      door to the network and to others' folders: http, s3, stac, Earth Engine, local
    engine       door to the machines: serial, dask
    store        door to the disk: objects, layout, tables, shard, commit, ledger, reader
    watch        progress: live bars on a terminal, log lines elsewhere
    raster       the workbench: lattice, blocks, masks, radiometry, responses, statistics
    ports        what the rooms expect of one another (protocols)
    records      the rows of every table
    recipe       the user's TOML file, checked (those that are built in lie in `recipes`)
    products     the facts: one TOML file per product
    errors       what can go wrong, by what the handler does about it

The flow, each arrow a table on disk::

    recipe -> sample -> locations -> search -> scenes -> plan -> plans -> extract -> shards,
    commits -> publish -> versions -> pretrain -> models -> evaluate -> reports

A line belongs to the lowest floor that can know it: arithmetic on arrays in `raster`, a
provider's quirk in its TOML entry, a decision about which scene to use in `stages`, reading and
writing in `sources` and `store`, and the order of things in `run`. So::

    a sensor                    products/<id>.toml, and no code
    a provider                  sources/providers.toml; its names for things in the product files
    folders of a new format     sources/local/<format>.py
    a way to draw places        its table in recipe/fields.py, the drawing in stages/sample/
    which scene is preferred    stages/plan/candidates.py
    when a patch is refused     stages/extract.py
    a column of a table         records.py; `make schemas` writes it down
    an array of a shard         store/shard.py
    a pretraining method        pretrain/methods/<name>.py, chosen in pretrain/choice.py
    a probe, a baseline         evaluate/
    a command                   its words in cli/, its work in run/<command>.py

To follow a command, read `run/<command>.py` (what is read and written, in order), then the room
of that name in `stages` (what is decided, and why); what a worker does begins in `task/shard.py`.
Tests lie in the folder of the same name under `tests`.
"""
