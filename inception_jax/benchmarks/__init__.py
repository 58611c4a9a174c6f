"""What `benchmark` is made of. Nothing is imported here: a side of a comparison may run without JAX."""
