"""The store: keys, atomic files, locks, images by content, durable tables of a stage."""
