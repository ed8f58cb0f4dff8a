"""Which recordings belong together, and folds that never split them."""

from __future__ import annotations

import json

import pytest

from tzn.data.groups import group_folds, recording_groups
from tzn.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path):
    entries = {
        "exp01_user1": {"subject": "A"}, "exp02_user1": {"subject": 7, "group": "kitchen"}, "exp03_user2": {},
    }  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"database": {k: {"subset": "training", "annotations": [], **v} for k, v in entries.items()}})
    )
    return path


def test_groups_come_from_the_file_or_a_pattern(file):
    ids = ["exp01_user1", "exp02_user1", "exp03_user2"]
    assert recording_groups(file, ids) == {"exp01_user1": "A", "exp02_user1": "kitchen", "exp03_user2": "exp03_user2"}
    assert set(recording_groups(file, ids, r"user\d").values()) == {"user1", "user2"}
    assert set(recording_groups(file, ids, r"exp(\d+)_").values()) == {"01", "02", "03"}
    with pytest.raises(ConfigError, match="not a regular expression"):
        recording_groups(file, ids, "user(")
    with pytest.raises(DataError, match="finds nothing in the recording id 'exp01_user1'"):
        recording_groups(file, ids, "person")


def test_folds_keep_groups_whole_and_are_even():
    groups = {f"r{i}": f"g{i % 7}" for i in range(30)}
    folds = group_folds(groups, 3)
    assert sorted(name for fold in folds for name in fold) == sorted(groups) and folds == group_folds(groups, 3)
    held = [{groups[name] for name in fold} for fold in folds]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    assert max(map(len, folds)) - min(map(len, folds)) <= 5  # the largest group
    for wrong in (1, 8):
        with pytest.raises(ConfigError, match="from 2 to the 7 groups"):
            group_folds(groups, wrong)
