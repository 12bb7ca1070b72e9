"""From an experiment and the facts of a site to a plan: which process runs where, with what. Pure, no I/O.

Everything that can be wrong with an experiment is found here, before anything is queued.
"""
