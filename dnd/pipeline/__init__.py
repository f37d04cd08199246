"""The main job: the stages in order, each over all units before the next."""
