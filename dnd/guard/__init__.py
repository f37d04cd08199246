"""What refuses the network inside a process: see docs/offline.md."""
