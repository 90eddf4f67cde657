"""Where the rows of studies are kept."""

import numpy as np

from compress.rows import read_row, row_file, write_row


def test_a_row_is_found_by_what_it_is_made_of(tmp_path):
    file = row_file(tmp_path, ["settings", 1.5, ("a", "b")], "adaptation", "proposed, equation 1 alone", 3)
    assert file == tmp_path / "rows/adaptation-proposed-equation-1-alone-3-1562c4f27b5f0863.npz"
    assert row_file(tmp_path, ["others"], "adaptation", "proposed, equation 1 alone", 3) != file
    given = tmp_path / "weights"
    made = []
    for content in ("one", "two"):
        given.write_text(content)
        made.append(row_file(tmp_path, ["settings"], "row", files=[str(given)]))
    assert len({row_file(tmp_path, ["settings"], "row"), *made}) == 3
    assert row_file(tmp_path, [], "class weight .1", 0, suffix=".json").name.startswith("class-weight-.1-0-")
    assert read_row(file) is None
    write_row(file, {"val/same@16": np.arange(3.0), "psnr": 2.5})
    found = read_row(file)
    assert found["val/same@16"].tolist() == [0, 1, 2]
    assert found["psnr"] == 2.5
