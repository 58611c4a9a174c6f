"""Loads a trained network from a workdir or a checkpoint, to evaluate it, to predict, and to extract features."""
