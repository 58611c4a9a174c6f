"""The names that the flags of a sweep take; a module of its own, so that `sweep --help` imports nothing else."""

SAMPLERS = ("tpe", "random", "quasi", "grid")
PRUNERS = ("halving", "median", "none")
OBJECTIVES = ("final", "best")
