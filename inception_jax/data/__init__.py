"""Data sets to batches of uint8 images on the host. Knows no model, and imports no jax: workers import it again."""
