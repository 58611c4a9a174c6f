"""Checkpoints: saving with checksums, restoring, and keeping the newest and the best."""
