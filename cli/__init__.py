"""The command line: a NATS client with no server of its own. One file per noun; every command is thin.

main       the command tree, exit codes, errors
options    global options, anywhere on the line
cluster    one connection, and reading what the cluster says of itself
output     tables for people, JSON, YAML, wide and names for programs
pipelines, executions, hosts, leader, events, logs, store, doctor, version    the nouns and verbs
daemons, up, demo                                                             processes in the foreground
"""
