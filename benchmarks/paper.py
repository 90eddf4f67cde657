"""What the papers report, to stand beside what is measured here. Nothing in this file was measured here."""

SOURCE = "Ge et al. 2019, Table II"
FACES_PER_SECOND = {
    "one 2.6 GHz core": {16: 934, 32: 335, 64: 81, 96: 33},
    "Tesla K80": {16: 14705, 32: 12987, 64: 5000, 96: 2941},
    "Snapdragon 821": {16: 763, 32: 206, 64: 121, 96: 59},
}
"""Bridge distillation's students by input size."""
MEMORY_MB = {16: 0.057, 32: 0.224, 64: 0.892, 96: 2.005}
"""Its memory column: it grows with the input's area, so it counts feature maps, not weights."""
