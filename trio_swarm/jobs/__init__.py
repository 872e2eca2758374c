"""Jobs that ship with the package, built on its public API alone.

Nothing is imported here: worker processes load one light module of a job and no more.
"""
