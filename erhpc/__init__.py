"""erhpc launches and characterises an Expert Router on Slurm clusters.

The package root imports nothing, so that importing erhpc costs nothing; every stage lives in a room of its own.
"""

__version__ = "0.1.0"
