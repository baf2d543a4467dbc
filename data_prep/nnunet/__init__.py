"""A bridge to the published `nnunetv2` package: our cases out, its predictions back in.

No code of theirs is here: `export` writes the raw format that its documentation describes, `run`
calls its console commands, and `collect` scores what they wrote with our metrics.
"""
