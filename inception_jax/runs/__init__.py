"""The files of a workdir (lock, manifest, metrics, result, report, plots), and comparison and listing of runs."""
