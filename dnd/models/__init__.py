"""models.lock and the local model store: verify, fetch, lock, pack and unpack."""
