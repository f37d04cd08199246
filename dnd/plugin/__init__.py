"""Plugins: hook specifications, the registry, what backends return, and the template of a new one."""
