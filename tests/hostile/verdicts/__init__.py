"""One misbehaving task a file: `attack(input, ctx)` must end with the verdict `KIND`.

`KIND` is an error kind, or "completed". `SAMPLED` replaces it where no cgroup holds the limits;
`LIMITS` and `TIMEOUTS` are the task's own. `check(seen)` looks from the host at what came of it.
"""
