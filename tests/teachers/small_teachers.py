"""Arguments that make a backbone small; the architecture is otherwise the same."""

# Per registered teacher: arguments that make its backbone small, and the architecture otherwise the same.
SMALL = {
    "dlib_resnet": {"blocks": [(32, False), (64, True), (64, False)]},
    "swin_b": {"depths": (2, 2, 1), "dim": 24, "heads": (2, 2, 2), "embedding_dim": 16},
}
SMALL_SWIN = {"depths": (2, 2, 1), "dim": 24, "heads": (2, 2, 2)}
