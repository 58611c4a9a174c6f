"""Sweeps: many runs of one recipe with other numbers, by Optuna; each run is a training process of its own."""
