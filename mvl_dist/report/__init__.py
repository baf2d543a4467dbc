"""The report of a study: one page, every table and figure of the paper beside ours, and a verdict.

    source.py    runs, their files and curves, out of MLflow or a spool
    results.py   which run of the study stands in which cell, and its per-case values
    stats.py     cells and comparisons of tables, with their significance marks
    paper.py     the paper's numbers
    tables.py    Tables 2 to 6 in the paper's shape
    extras.py    what the paper lacks: controls, regions, cost, calibration, failures
    claim.py     'Is the claim supported?': effects, and a sentence by a stated rule
    figures.py   Figures 2 and 3 (pictures of cases)     plots.py   Figures 4 and 5, and the others
    viewer.py    chosen cases as NIfTI for the page's 3D viewer
    layout.py    a table as HTML, CSV and LaTeX
    page.py      the page
    arrange.py   a parent run a task in MLflow, so that browsing finds the best and the worst
    command.py   `mvl report`

Nothing here imports the engine, and nothing trains or evaluates.
"""
