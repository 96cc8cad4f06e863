"""Files that count anew when they change (`supervisor/reload.py`)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import watchfiles
from casemate.protocol.errors import UsageError
from casemate.supervisor.reload import Watch, keep_loaded
from fakes import PATIENCE


def seen_after(watch: Watch, act: Callable[[], object]) -> bool:
    """Whether what was done while it waited was seen."""

    async def see() -> bool:
        waiting = asyncio.create_task(watch.wait_changed())
        await asyncio.sleep(0)
        await asyncio.to_thread(act)
        await asyncio.wait_for(waiting, PATIENCE)
        return True

    return asyncio.run(see())


def test_a_change_of_a_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one")
    assert seen_after(Watch(file), lambda: file.write_text("two"))


def test_a_file_that_is_replaced_by_another_is_seen_again_and_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("0")
    watch = Watch(file)
    for number in range(3):
        new = tmp_path / "new"
        new.write_text(str(number))
        assert seen_after(watch, lambda new=new: os.rename(new, file))  # type: ignore[misc]


def test_a_file_is_seen_to_come_and_go_with_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "later" / "keys"
    watch = Watch(file)

    def come() -> None:
        file.parent.mkdir()
        file.write_text("one")

    assert seen_after(watch, come)
    assert seen_after(watch, file.unlink)


def test_what_changes_between_the_making_of_a_watch_and_the_wait_is_not_lost(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys"
    watch = Watch(file)
    file.write_text("one")
    assert seen_after(watch, lambda: None)


def test_a_folder_is_seen_with_all_below_it_and_one_that_came_later(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    deep = tmp_path / "a" / "b"
    assert seen_after(watch, lambda: deep.mkdir(parents=True))
    assert seen_after(watch, lambda: (deep / "file").write_text("one"))
    assert seen_after(watch, lambda: (deep / "file").write_text("another"))


def test_a_neighbour_of_a_file_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one")
    looks = threading.Semaphore(0)

    async def see() -> None:
        watch = Watch(file)
        looked = watch._words

        async def words():  # type: ignore[no-untyped-def]
            async for word in looked():
                yield word
                looks.release()  # what it was told has been looked at

        watch._words = words  # type: ignore[method-assign]
        waiting = asyncio.create_task(watch.wait_changed())
        (tmp_path / "other").write_text("one")
        for _ in range(2):
            assert await asyncio.to_thread(looks.acquire, timeout=PATIENCE)
        assert not waiting.done()
        file.write_text("two")
        await asyncio.wait_for(waiting, PATIENCE)

    asyncio.run(see())


def test_without_the_kernels_word_it_looks_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no space left on device")  # inotify's word for no more watches

    monkeypatch.setattr(watchfiles, "awatch", refused)
    file = tmp_path / "keys"
    assert seen_after(Watch(file), lambda: file.write_text("one"))


def test_what_is_broken_is_reported_and_what_is_whole_again_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "number"
    file.write_text("1")
    told: asyncio.Queue[object] = asyncio.Queue()

    def load() -> int:
        text = file.read_text()
        if not text.isdigit():
            raise UsageError(f"{text!r} is no number")
        return int(text)

    async def see() -> None:
        keeping = asyncio.create_task(
            keep_loaded(Watch(file), load, told.put_nowait, told.put_nowait)
        )
        await asyncio.sleep(0)
        file.write_text("two")
        assert await asyncio.wait_for(told.get(), PATIENCE) == "'two' is no number"
        file.write_text("3")
        assert await asyncio.wait_for(told.get(), PATIENCE) == 3
        keeping.cancel()
        await asyncio.wait([keeping])

    asyncio.run(see())


def test_a_wait_that_is_given_up_leaves_no_thread_at_work(tmp_path: Path) -> None:
    async def see() -> None:
        before = threading.active_count()
        waiting = asyncio.create_task(Watch(tmp_path).wait_changed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert threading.active_count() <= before + 2  # of the two pools, both idle

    asyncio.run(see())
