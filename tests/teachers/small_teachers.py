"""Arguments that make a backbone small; the architecture is otherwise the same."""

_NARROW = {"depths": (1, 2, 1, 1), "widths": (8, 8, 12, 16), "embedding_dim": 24}

# Per registered teacher: arguments that make its backbone small, and the architecture otherwise the same.
SMALL = {
    "dlib_resnet": {"blocks": [(32, False), (64, True), (64, False)]},
    "swin_b": {"depths": (2, 2, 1), "dim": 24, "heads": (2, 2, 2), "embedding_dim": 16},
    "iresnet18": _NARROW,
    "iresnet50": _NARROW | {"depths": (1, 1, 2, 1)},
    "iresnet100": _NARROW | {"depths": (1, 1, 1, 2)},
    "mobilefacenet": {
        "bottlenecks": ((2, 8, 2, 2), (4, 12, 1, 2), (2, 12, 2, 2)), "width": 8, "last": 32, "embedding_dim": 16,
    },
    "face_transformer": {"depth": 2, "dim": 32, "heads": 4, "mlp": 64},
}  # fmt: skip
# timm's own models for tests, about 0.3M parameters each, at a size that is not their own. Its residual branches
# would start at zero, through which no gradient goes.
SMALL_TIMM = {"timm:test_vit?px=64": {}, "timm:test_resnet?px=64": {"zero_init_last": False}}
SMALL_SWIN = {"depths": (2, 2, 1), "dim": 24, "heads": (2, 2, 2)}
