from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Features made by a test stay away from the user's."""
    monkeypatch.setenv("TZN_CACHE", str(tmp_path_factory.mktemp("cache")))
