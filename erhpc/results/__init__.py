"""What a run leaves behind: paths, columns, formulas, verdicts, Parquet, provenance.

record              the columns of both tables, and the schema's history (pure)
metrics, audit      the formulas; whether the requests of an open loop came as asked (pure)
summary, validity   the row of a level; when it is not to be trusted (pure)
store               Parquet: the only module here that knows pyarrow
paths, atomic       every file name of a run; files that appear whole or not at all
provenance          where a result comes from
telemetry           how late a process ran
"""
