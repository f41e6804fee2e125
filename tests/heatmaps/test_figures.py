"""What the shared plot pieces draw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from icrm_lib.figures import COLORS, LINESTYLES, MARKERS, forest, label_lines, use_style


@pytest.fixture
def ax():
    use_style()
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_methods_differ_in_more_than_colour():
    assert LINESTYLES.keys() == MARKERS.keys() <= COLORS.keys()
    assert len(set(map(str, LINESTYLES.values()))) == len(LINESTYLES) and len(set(MARKERS.values())) == len(MARKERS)


def test_colours_differ_in_grey():
    def lightness(color):
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    grey = sorted(lightness(COLORS[name]) for name in MARKERS)
    assert min(np.diff(grey)) > 0.03


def test_a_forest_has_its_rows_from_top_to_bottom_with_their_intervals(ax):
    forest(ax, ["first", "second"], [(0.1, 0.0, 0.3), (-0.2, -0.25, -0.1)])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_yticks().tolist() == [1, 0]
    points = next(line for line in ax.get_lines() if line.get_marker() == "o")
    assert points.get_xdata().tolist() == [0.1, -0.2] and points.get_ydata().tolist() == [1, 0]
    segments = np.sort([segment[:, 0] for segment in ax.collections[0].get_segments()], axis=1)
    np.testing.assert_allclose(segments, [[0.0, 0.3], [-0.25, -0.1]])


def test_labels_of_lines_stand_at_their_ends_and_apart(ax):
    ax.plot([0, 1], [0, 1.0], label="a")
    ax.plot([0, 1], [0, 1.01], label="b")
    ax.plot([0, 1], [0, 0.2], label="_hidden")
    ax.set(xlim=(0, 1), ylim=(0, 2))
    label_lines(ax)
    heights = {text.get_text(): text.xy[1] for text in ax.texts}
    assert heights.keys() == {"a", "b"} and heights["b"] - heights["a"] >= 0.05 - 1e-9
