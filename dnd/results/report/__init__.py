"""The offline report of one run or several: a folder of static files that opens from disk (docs/results.md)."""
