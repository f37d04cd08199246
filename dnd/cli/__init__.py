"""The command line, one file per command. Nothing heavy is imported at the top of any."""
