"""One attack a file that takes more than one task: `attack(stage)` returns what stopped it in a
word, or raises `NotContained`. `WALLS` are what may stop it (`walls.py`).
"""
