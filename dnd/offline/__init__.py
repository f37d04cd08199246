"""What keeps a process off the network: an audit hook, a namespace, environment switches."""
