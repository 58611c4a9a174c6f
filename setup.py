"""Adds the recipes of configs/ to the installed package, as inception_jax/configs. Everything else: pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["inception_jax*"]), "inception_jax.configs"],
    package_dir={"inception_jax.configs": "configs"},
)
