import pytest

from attnprobe.tasks import folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a data folder in it."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
