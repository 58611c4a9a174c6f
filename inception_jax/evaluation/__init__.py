"""Loads a trained network from a workdir or a checkpoint, to evaluate it and to predict with it."""
