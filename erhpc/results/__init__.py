"""What a run leaves behind: paths, record schema, formulas, Parquet, provenance.

`record`, `metrics` and `paths` are pure; `store` is the only module that knows pyarrow.
"""
