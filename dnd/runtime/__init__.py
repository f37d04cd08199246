"""Where work runs: devices, memory, worker processes, progress, log, status, signals."""
