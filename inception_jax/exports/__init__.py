"""Exports networks to other programs: ONNX and StableHLO; folds batch norm into the convolutions before it.

README.md beside this file shows the calls. safetensors files are written by `weight_files.safetensors_writer`.
"""
