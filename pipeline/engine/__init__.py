"""The door to the machines: the same port, serial or Dask."""
