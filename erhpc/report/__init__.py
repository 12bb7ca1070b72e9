"""What a person reads of a run: tables and figures made from levels.parquet, weeks later, on any laptop.

`runs` finds runs and loads their levels, `series` gives each run its name, `tables` and `figures` are two views of
that one data frame, and `python -m erhpc.report` shows both. It starts nothing and needs no cluster.
"""
