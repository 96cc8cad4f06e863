"""The attack suite: what `tests/hostile` runs, and what `casemate doctor --attack` runs for a user.

Installed as `casemate.hostile`. An attack is one file, and what must become of it stands there as
data beside it:

    attacks/    tasks that reach for something: they succeed outside and must raise inside
    verdicts/   tasks that misbehave: each must receive its error kind, and nothing else notices
    stories/    what takes more than one task: the attacker comes before, beside or after a run

    attack.py   an attack and what its file says of it        walls.py   the names of the walls
    require.py  how what is demanded is said
    target.py   what there is to reach, each of it really there
    outside.py  attacks with nothing around them: there they must succeed
    stage.py    where a story takes place
    inside.py   what attacks use inside                       good.py    the task that comes after
    arena.py    a supervisor and the runs in it               seen.py    what the host saw of a task
    runner.py   all of it, and one outcome for each attack

Attacks import from the standard library, from casemate, and relatively from here: they are loaded
inside the sandbox from a copy of this folder, whatever its name is there.
"""
