"""`dnd bench`: combinations of methods, backends and settings side by side (docs/bench.md)."""
