"""The rule of every error of hpcmagic: what happened, then what to do."""


def two_lines(error):
    """Give the error that `pytest.raises` caught; its text must have two lines, the second a mend."""
    lines = str(error.value).splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith("→ ")
    return error.value
