"""What the leader decides, as pure functions of a frozen view: see `plan`."""
