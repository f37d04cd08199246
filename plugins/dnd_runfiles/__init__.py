"""The run files for photographs; `dnd run NAME` finds them through the entry points of the group `dnd.runfiles`."""
