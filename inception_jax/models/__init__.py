"""The networks, in pure Flax Linen. This folder imports nothing else of the package and can be copied as it is.

Start at `registry.py` (the list of networks), then read a network's file: first the paper's table, then the network.
"""
