"""What a run writes down about itself."""

import shutil
import subprocess

import pytest

from hyperface_jax import workdir


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, of which the package believes to be a part."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    module = tmp_path / "hyperface_jax" / "workdir.py"
    module.parent.mkdir()
    module.write_text("one")
    monkeypatch.setattr(workdir, "__file__", str(module))
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return module


def test_a_commit_says_whether_a_file_has_changed_since(repository):
    name = workdir.commit()
    assert len(name) >= 7
    assert int(name, 16)
    (repository.parent / "new.py").write_text("nobody has asked git to keep it")
    assert workdir.commit() == name
    repository.write_text("two")
    assert workdir.commit() == f"{name}-dirty"


def test_below_another_repository_there_is_no_commit(repository, monkeypatch):
    installed = repository.parent / "site" / "hyperface_jax" / "workdir.py"
    monkeypatch.setattr(workdir, "__file__", str(installed))
    installed.parent.mkdir(parents=True)
    assert workdir.commit() == ""
