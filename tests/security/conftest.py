"""What several tests of safety share."""

import pytest


@pytest.fixture
def sprung(tmp_path):
    """The folder that is there when something ran."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()
