"""The network under study: loading, fingerprint, hooked layers, maps."""
