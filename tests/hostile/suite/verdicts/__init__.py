"""One misbehaving task a file: `attack(input, ctx)` must end with the verdict `KIND`.

`KIND` is an error kind, or "completed". `SAMPLED` replaces it where no cgroup holds the limits;
None: nothing holds it there, and it is said to be unheld.
`LIMITS` and `TIMEOUTS` are the task's own. `WALLS` are what may stop it (`walls.py`). `check(seen)`
looks from the host at what came of it. `outside()` is a milder twin that succeeds outside.
"""
