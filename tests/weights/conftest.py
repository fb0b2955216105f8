"""Fixtures for the tests of weight files."""

import pytest

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.weights.readers import read


@pytest.fixture
def reads(tmp_path):
    """Read a file of these bytes."""

    def read_bytes(content):
        path = tmp_path / "weights.bin"
        path.write_bytes(content)
        return read(path)

    return read_bytes


@pytest.fixture
def refuses(tmp_path):
    """A file of these bytes is refused in one line that names it and holds `said`."""

    def read_bytes(content, said):
        path = tmp_path / "weights.bin"
        path.write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message and message.endswith("."), message
        assert len(message) < 700

    return read_bytes
