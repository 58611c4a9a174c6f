"""Checks of the installation, the machine, a recipe, its data and a workdir, before a run: the verb `doctor`."""
