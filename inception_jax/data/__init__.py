"""Data sets as batches of uint8 images on the host. Knows no model and imports no jax: worker processes import it."""
