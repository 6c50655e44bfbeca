"""What several test files of this wing share."""

import pytest
from made import encoded, noise
from PIL import Image


@pytest.fixture
def broken_folder(tmp_path):
    """Twelve files with images' names: 3, 4 and 11 are broken, the others grey levels of 20 times
    their number.
    """
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i,) * 3).save(tmp_path / f"{i:02d}.png")
    whole = encoded(noise(), "JPEG")
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "04.png").write_bytes(whole[:-100])
    (tmp_path / "11.png").write_text("this is a letter")
    return tmp_path
