import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg


@pytest.fixture
def draw():
    """The function that gives a figure's pixels, drawn by Agg as savefig does."""

    def pixels(figure):
        agg = FigureCanvasAgg(figure)
        agg.draw()
        return np.asarray(agg.buffer_rgba())

    return pixels
