"""One attack a file: `attack(target)` succeeds outside a sandbox and must raise inside."""
