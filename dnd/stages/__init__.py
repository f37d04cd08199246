"""Stages 2 to 5: each over all units before the next, one heavy model in memory at a time.

What a stage asks for and what it got lies on disk (`dnd.scratch.Ledger`), found again by unit, image or concept: the
memory of a run hardly grows with its units.
"""
