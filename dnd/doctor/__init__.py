"""Can this run work here: checks before any GPU time, and the plan of a dry run."""
