"""One attack a file that takes more than one task: `attack(stage)` returns what stopped it, or
raises `NotContained`.
"""
