"""Attacks, one a file, with what must stop each; what they share is in `inside.py`.

`attacks/` hold tasks that reach for something: they succeed outside and must raise inside.
`verdicts/` hold tasks that misbehave: each must receive its error kind, and nothing else notices.
"""
