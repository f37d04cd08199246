"""What a run leaves behind: writing it, reading it again, exports, the report."""
