"""The bundled run files; `dnd run NAME` finds them through the entry points of the group `dnd.runfiles`."""
