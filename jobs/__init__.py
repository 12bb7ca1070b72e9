"""What runs as a process of a run: one short module each, reading a spec, wiring parts, returning an exit code."""
