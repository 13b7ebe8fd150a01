"""What an agent decides, as pure functions from values to values.

session    what a heartbeat's outcome and a read-back mean for the host's session
admit      which assignment is obeyed
inventory  what the executor has, by its last list and what was done since
health     how far a runner's health file is believed
situation  the words of a decision: what it depends on, actions, what it says
grants     what becomes of the grants that there are
diff       the next action for each execution, and what is observed of it
restarts   how an execution ended, and when it is started again
"""
