"""What the operator said, and who wins: file, then environment, then flags."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from casemate.protocol.errors import UsageError
from casemate.supervisor.config import load_config


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("CASEMATE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "home/.config/casemate/casemate.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_without_a_word_every_value_is_decided(tmp_path: Path) -> None:
    config = load_config()
    assert config.state == tmp_path / "home/.local/state/casemate"
    assert config.max_parallel >= 4
    assert 0 < config.memory_budget < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < config.cpu_budget <= len(os.sched_getaffinity(0))
    assert (config.degrade, config.strict, config.notes) == ((), (), ())
    assert not config.allow.network
    assert config.allow.env == frozenset()
    assert config.allow.paths == ()
    assert config.allow.state == config.state


def test_a_flag_beats_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 'state = "/from/file"\nmax_parallel = 1\nmemory = "1GiB"\nstrict = ["cgroup"]')
    monkeypatch.setenv("CASEMATE_STATE", "/from/environment")
    monkeypatch.setenv("CASEMATE_MAX_PARALLEL", "2")
    config = load_config(state="/from/flag")
    assert config.state == Path("/from/flag")
    assert config.max_parallel == 2
    assert config.memory_budget == 2**30
    assert config.strict == ("cgroup",)


def test_the_engine_gets_what_was_decided(tmp_path: Path) -> None:
    settings = load_config(state="s", max_parallel=3, memory="2GiB", degrade=["net"]).settings()
    assert settings.state == str(tmp_path / "s")
    assert (settings.max_parallel, settings.memory_budget) == (3, 2**31)
    assert load_config(cpu=0.5).settings().cpu_budget == 0.5
    assert (settings.degrade, settings.strict) == (("net",), ())


def test_grants_are_the_same_words_in_the_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 'allow = ["network", "env:API_KEY", "path:/srv/data"]')
    from_file = load_config().allow
    monkeypatch.setenv("CASEMATE_ALLOW", "network, env:API_KEY,path:/srv/data")
    assert load_config().allow == from_file
    assert from_file.network
    assert from_file.env == {"API_KEY"}
    assert from_file.paths == (Path("/srv/data"),)
    assert load_config(allow=[]).allow.env == frozenset()


def test_state_goes_below_xdg_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert load_config().state == Path("/var/state/casemate")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification: ignore it
    assert load_config().state.name == "casemate"
    assert "relative" not in str(load_config().state)


def test_a_folder_cannot_grant_itself_authority_and_says_that_it_was_not_heard(
    tmp_path: Path,
) -> None:
    (tmp_path / "casemate.toml").write_text('allow = ["network"]\ndegrade = ["seccomp"]')
    config = load_config()
    assert not config.allow.network
    assert config.degrade == ()
    [note] = config.notes
    assert note.startswith(f"{tmp_path / 'casemate.toml'} was not read")
    assert "CASEMATE_CONFIG=casemate.toml" in note


def test_a_dotenv_file_of_the_current_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CASEMATE_ALLOW=network\n")
    assert not load_config().allow.network


def test_the_operator_may_name_a_file_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "casemate.toml").write_text("max_parallel = 7")
    assert load_config(config="casemate.toml").max_parallel == 7
    monkeypatch.setenv("CASEMATE_CONFIG", "casemate.toml")
    assert load_config().max_parallel == 7
    assert load_config().notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_paralel = 3", "{file}: max_paralel: unknown key; did you mean max_parallel?"),
        ('memory = "lots"', "{file}: memory: 'lots' is not a size; write a number of bytes or a"),
        ("max_parallel = 0", "{file}: max_parallel: 0 is too little; at least 1"),
        ('state = "runs"', '{file}: state: "runs" would be another folder wherever casemate is'),
        ("cpu = 0.0", "{file}: cpu: 0.0 is too little; at least 0.01"),
        ("max_parallel", "{file}: is not TOML:"),
        ('keys = "~nosuchuser/k"', '"~nosuchuser/k": there is no such user'),
        ('allow = ["all"]', 'allow: "all" means nothing; expected network, proc, env:NAME, '),
        ('allow = ["path:data"]', 'allow: "path:data" means nothing; expected network'),
    ],
)
def test_a_wrong_file_is_told_where_and_what_to_write(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as refusal:
        load_config()
    assert str(refusal.value).startswith(message.format(file=file))


def test_a_wrong_variable_and_a_wrong_flag_are_called_by_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CASEMATE_MAX_PARALLEL", "many")
    with pytest.raises(UsageError) as refusal:
        load_config(memory="much")
    first, second = str(refusal.value).splitlines()
    assert first.startswith("CASEMATE_MAX_PARALLEL: expected a whole number, got")
    assert second.startswith("--memory: 'much' is not a size")


def test_a_file_that_was_named_but_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_config(config=tmp_path / "nowhere.toml")


def test_settings_of_somebody_else_are_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HOME as `su` left it. Root may look anywhere, so the refusal is pretended."""

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UsageError, match="Permission denied; set HOME or XDG_CONFIG_HOME"):
        load_config()
