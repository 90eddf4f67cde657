"""Small sets of real faces for the commands of `compress.study`: two folders of people, and pairs of the second."""

import csv
from pathlib import Path

from faces.sources import open_faces, orl


def write_people(root: Path, learn: int = 5, val: int = 3, shots: int = 4) -> Path:
    """`root`/learn and `root`/val, a folder a person, and `root`/pairs.csv: all pairs of `val` in five folds."""
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= learn + val and int(shot) <= shots:
            folder = root / ("learn" if int(person[1:]) <= learn else "val") / person
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{shot}.pgm").write_bytes(record.data)
    faces = open_faces(str(root / "val"))
    with (root / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key_a", "key_b", "same", "fold"])
        pairs = [(i, j) for i in range(len(faces)) for j in range(i)]
        for number, (i, j) in enumerate(pairs):
            same = faces.identities[i] == faces.identities[j]
            rows.writerow([faces.keys[i], faces.keys[j], int(same), number % 5])
    return root
