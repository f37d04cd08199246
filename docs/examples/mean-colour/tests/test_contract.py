from mean_colour import MeanColour
from PIL import Image

from dnd.testing import CaptionerContract, runtime


class TestMeanColour(CaptionerContract):
    backend = MeanColour


def test_red_is_called_red():
    with MeanColour(MeanColour.Config(), runtime()) as captioner:
        assert captioner.caption([Image.new("RGB", (5, 4), "red")]) == ["a red picture"]
