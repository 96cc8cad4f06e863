"""One attack a file: `attack(target)` succeeds outside a sandbox and must raise inside.

`EXPECTED` is the type of what it must raise, None where it may do as it likes and what it changes
is a layer of its own; `SAMPLED` replaces it where no cgroup holds the limits. `WALLS` are what may
stop it (`walls.py`).

`RUNS_OUTSIDE = True` says that it is harmless outside, too; whatever is not has a milder twin that
is run there in its place, `outside(target)`. What takes a capability outside names it in `NEEDS`.
"""
