"""Two folders of records compared: by hand, with what only one of them has left out."""

import json

import pytest

from icrm_lib.report.comparison import compare_folders


def write(folder, name, right, count, smooth=None, seconds=1.0):
    folder.mkdir(exist_ok=True)
    metrics = {"accuracy": {"in_distribution": {"right": right, "count": count}}, "seconds": {"train": seconds}}
    metrics["tokens"] = {"smoothness": {"within": smooth}}
    (folder / name).write_text(json.dumps({"metrics": metrics}))


def test_means_and_the_largest_difference_are_those_of_the_common_cells(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "bt-seed_0.json", [3, 4], [5, 5], smooth=0.5, seconds=8)
    write(new, "bt-seed_0.json", [4, 4], [5, 5], smooth=0.25, seconds=4)
    write(old, "bt-seed_1.json", [2], [4], smooth=0.1, seconds=6)
    write(new, "bt-seed_1.json", [1], [4], smooth=None, seconds=3)
    write(old, "only-seed_0.json", [0], [5])
    for folder in (old, new):
        (folder / "tuning.json").write_text('{"bt": {"chosen": {"learning_rate": 0.001}}}')  # as `tune` leaves it
    frame = compare_folders(old, new).set_index("measure")
    assert list(frame.index) == ["accuracy on labels", "smoothness", "train seconds"]
    assert frame.loc["accuracy on labels"].tolist() == pytest.approx([2, 0.6, 0.525, -0.25])
    assert frame.loc["smoothness"].tolist() == pytest.approx([1, 0.5, 0.25, -0.25])  # undefined in the other cell
    assert frame.loc["train seconds"].tolist() == pytest.approx([2, 7, 3.5, -4])


def test_folders_without_a_common_cell_are_refused(tmp_path):
    write(tmp_path / "old", "bt-seed_0.json", [1], [2])
    write(tmp_path / "new", "bt-seed_1.json", [1], [2])
    with pytest.raises(ValueError, match="no cell in common"):
        compare_folders(tmp_path / "old", tmp_path / "new")
