"""Turns a plan into running processes: submission, node agents, rendezvous, supervision, the status of a run.

`submission` is the only module that knows submitit. `agent` runs once per node; on rank 0 `coordinator` leads.
"""
