"""models.lock and the local model store: verify, fetch, lock, pack and unpack."""

ROLES = ("captioner", "summarizer", "generator", "scorer", "target", "encoder")
"""What a model may be for."""
