"""How a network is judged: protocols (which crops of an image, averaged how) and metrics as sums and counts."""
