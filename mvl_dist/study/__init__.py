"""A study: a grid of runs written as a file, what of it is done, and what the rest will cost.

    grid.py     the file -> runs; a run that several tables share exists once
    status.py   what MLflow says of each run
    claims.py   who trains a run now
    cost.py     what a run takes, from runs that were measured
    smoke.py    every run shrunk to a few steps on stand-in data
    command.py  `mvl study`

The runs are trained by `mvl_dist/train_study.py`; nothing here imports the engine.
"""
