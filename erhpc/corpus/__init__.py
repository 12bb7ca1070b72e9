"""The prompts a run sends and a router is fitted on: the ones erhpc ships, and files a user brings.

Nothing here knows routers, load levels or tokens.
"""
