"""Derivations in SymPy (``symbolic``, ``expansion``) and closed forms in float64 NumPy (``reference``).

``from kdlab.theory import reference`` needs NumPy alone; the derivations need SymPy (``pip install 'kdlab[theory]'``).
"""
