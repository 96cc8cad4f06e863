"""Tell overlayfs by attributes that a folder of its layer is another one, for who comes after.

Source: overlayfs: user.overlay.redirect and .opaque, which escalate where who mounts trusts
them (linux 2d2f2d7322ff).
"""

from __future__ import annotations

from ..require import require
from ..stage import Stage

WALLS = ("layer",)


def attack(stage: Stage) -> str:
    (stage.workspace / "hidden").mkdir()
    (stage.workspace / "hidden" / "secret").write_text("secret")
    (stage.workspace / "folder").mkdir()
    (stage.workspace / "folder" / "file").write_text("here")
    mark = (
        "import os\n"
        "os.mkdir('redirected')\n"
        "open('folder/new', 'w').close()\n"
        "for place, name, value in (('redirected', 'redirect', b'/hidden'),\n"
        "                           ('folder', 'opaque', b'y')):\n"
        "    try:\n"
        "        os.setxattr(place, 'user.overlay.' + name, value)\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    look = 'ls redirected; cat folder/file; test -z "$(ls redirected)" && test -e folder/file'
    done = stage.run("run", stage.pipeline(forge=f'python3 -c "{mark}"', look=look))
    require(done.returncode == 0, f"the next one sees it: {done.stdout}")
    return "has no effect"
