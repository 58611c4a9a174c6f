"""The names of directories and files of checkpoints in a workdir. Imports nothing."""

SUBDIRECTORY = "checkpoints"
"""The directory of checkpoints in a workdir."""

STATE, HOST, RECORD_FILE = "state", "host", "metadata"
"""The two items of a step's directory, and the file in the second (the name that Orbax's JsonRestore expects)."""
