"""What labels are good for: find, group and prune units."""
