"""Experts: real vLLM servers, emulated ones, and what both need to start: model directories, readiness, first errors.

This room knows nothing of Slurm, the gateway or users.
"""
