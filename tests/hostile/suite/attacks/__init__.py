"""One attack a file: `attack(target)` succeeds outside a sandbox and must raise inside.

`EXPECTED` is the type of what it must raise, None where it may do as it likes and what it changes
is a layer of its own. `WALLS` are what may stop it (`walls.py`). What would harm the host has a
milder twin that is run outside in its place, `outside(target)`; what takes a capability there names
it in `NEEDS`.
"""
