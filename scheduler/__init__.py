"""The scheduler: several identical instances, one of which leads by compare-and-set and commits plans."""
