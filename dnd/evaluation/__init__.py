"""`dnd eval`: how good labels are, against a truth and on images (docs/evaluate.md)."""
