import hashlib

from click.testing import CliRunner

from compress import zoo


def test_a_card_tells_files_by_name_and_hash_and_never_where_they_lay(tmp_path):
    first, second = tmp_path / "my_faces" / "a.tar", tmp_path / "my_faces" / "pairs.csv"
    first.parent.mkdir()
    first.write_bytes(b"faces")
    second.write_bytes(b"pairs")
    escaped = str(second).replace("_", "\\_")
    card = f"# tiny16\nMade by: pipeline --data {first} --set data.pairs={escaped}\n"
    found = zoo.published(card, [first, second])
    assert str(tmp_path) not in found
    assert "pipeline --data a.tar --set data.pairs=pairs.csv" in found
    assert "Data: research only." in zoo.published(f"Data: {zoo.USER_DATA}.", [], "research only")
    assert f"| a.tar | 5 | `{hashlib.sha256(b'faces').hexdigest()}` |" in found


def test_a_folder_that_is_no_run(tmp_path):
    done = CliRunner().invoke(zoo.main, [str(tmp_path)])
    assert done.exit_code == 2
    assert "results.json" in done.output
