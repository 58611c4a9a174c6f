"""Variants and name maps of each publisher; every module of a publisher has VARIANTS, {model: Variant}."""
