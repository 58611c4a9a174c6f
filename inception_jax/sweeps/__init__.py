"""Hyperparameter sweeps with Optuna: many runs of one recipe with other values, each in its own training process."""
