"""Measures step time, FLOPs, memory and input. Imports nothing: PyTorch's side of a comparison runs without JAX."""
