"""Checkpoints: saving with checksums, reading what a run left, and keeping the newest and the best."""
