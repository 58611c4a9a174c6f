"""Pretrained weights: a catalog of published checkpoints, import by a name map per publisher, and export."""
