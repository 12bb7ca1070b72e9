"""How long an expert takes: step times and a scheduler, used to predict a run and to pace an emulated expert.

Pure: time and randomness are arguments, nothing here waits. A number that comes from this room is never a
measurement, and whoever stores or shows one says so.
"""
