"""How notebooks and terminals show and run things; the only part that knows IPython.

No worker imports it.
"""
