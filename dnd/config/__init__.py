"""Run files: tables of settings in, a frozen `Run` out."""
