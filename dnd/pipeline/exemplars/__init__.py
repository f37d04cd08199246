"""Stage 1: each unit's strongest probing images and attention crops."""
