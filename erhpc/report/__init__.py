"""What a person reads of a run: tables and figures made from levels.parquet, weeks later, on any laptop.

`runs` finds runs and loads their levels, `series` gives each run its name, `loads` says what each level was asked to
carry, `searches` what a search found; `tables`, `clients` and `figures` are views of that one data frame, and
`python -m erhpc.report` shows them all. It starts nothing and needs no cluster.
"""
