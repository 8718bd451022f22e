"""The numbers of a VideoMask2Former."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from torch import Tensor

from s2d.errors import InputError

# Blocks of the four stages of a ResNet, by its layers.
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEPTHS = tuple(BLOCKS)
NORMS = ("FrozenBN", "GN")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; the defaults are those of the official ResNet-50 model.

    Attributes:
        depth: layers of the ResNet: 10, 18 and 34 of basic blocks, 50 and 101 of bottlenecks.
        width: channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks: 4, 8, 16, 32).
        norm: ``"FrozenBN"`` (for weights that were trained elsewhere) or ``"GN"`` (for training from random weights).
        hidden_dim: channels of the pixel decoder, the queries and the keys; a multiple of ``2 * nheads`` and of 8.
        nheads: heads of every attention.
        mask_dim: channels of the mask features.
        num_feature_levels: how many levels the two decoders attend to, from stride 32 upwards: 3 ends at stride 8.
        n_points: points that each head of the deformable attention reads on each level.
        encoder_layers: deformable layers of the pixel decoder.
        encoder_ffn: channels inside their feed-forward parts.
        encoder_dropout: their dropout, in training.
        decoder_layers: layers of the transformer decoder; one more head predicts before the first.
        decoder_ffn: channels inside their feed-forward parts.
        dropout: dropout of the transformer decoder, in training.
        num_queries: instances that can be predicted in a clip.
        num_classes: classes beside "no object".
        input_short_side: pixels of the frames' short side that the model was trained for; prediction resizes to it.
        input_long_side: the long side is no longer than this in prediction.
        nms_threshold: prediction drops a track whose tube overlaps a better one's by more than this IoU.
    """

    depth: int = 50
    width: int = 64
    norm: str = "FrozenBN"
    hidden_dim: int = 256
    nheads: int = 8
    mask_dim: int = 256
    num_feature_levels: int = 3
    n_points: int = 4
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    encoder_dropout: float = 0.3
    decoder_layers: int = 9
    decoder_ffn: int = 2048
    dropout: float = 0.0
    num_queries: int = 100
    num_classes: int = 1
    input_short_side: int = 360
    input_long_side: int = 1333
    nms_threshold: float = 0.75

    def __post_init__(self) -> None:
        self._expect(self.depth in DEPTHS, "depth", f"one of {DEPTHS}")
        self._expect(self.norm in NORMS, "norm", f"one of {NORMS}")
        self._expect(1 <= self.num_feature_levels <= 3, "num_feature_levels", "1, 2 or 3")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                least = 0 if field.name in ("encoder_layers", "decoder_layers") else 1
                whole = isinstance(value, int) and not isinstance(value, bool)
                self._expect(whole and value >= least, field.name, f"a whole number of at least {least}")
            elif field.type == "float":
                self._expect(isinstance(value, int | float) and 0 <= value < 1, field.name, "a number in [0, 1)")
        self._expect(
            self.hidden_dim % (2 * self.nheads) == 0, "hidden_dim", f"a multiple of 2 * nheads = {2 * self.nheads}"
        )
        for name in ("width", "hidden_dim"):
            self._expect(getattr(self, name) % 8 == 0, name, "a multiple of 8")

    def _expect(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise InputError(f"model.{name}: expected {expected}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, int | float | str]:
        """Plain values, as a recipe or a checkpoint holds them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, int | float | str]) -> ModelConfig:
        """The inverse of `to_dict`; InputError for a name that is not one of the attributes."""
        known = {field.name for field in fields(ModelConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"expected model settings among {', '.join(sorted(known))}; got {', '.join(unknown)}")
        return ModelConfig(**values)

    @staticmethod
    def of_weights(state: Mapping[str, Tensor]) -> ModelConfig:
        """The sizes that the tensors of a model have; the defaults where they do not say.

        Raises:
            InputError: the deformable attention is not of 8 heads and 4 points. Tensors show the product of the two
                alone, and with another product nothing tells them apart.
        """
        pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
        encoder, ffn = f"{pixel}transformer.encoder.layers.", f"{predictor}transformer_ffn_layers."

        def size(name: str, dimension: int = 0) -> int | None:
            shape = state[name].shape if name in state else ()
            return shape[dimension] if dimension < len(shape) else None

        def count(prefix: str) -> int | None:
            indices = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
            return len(indices) or None

        norm, logits = "backbone.stem.conv1.norm.", size(f"{predictor}class_embed.weight")
        blocks = tuple(count(f"backbone.res{stage}.") for stage in range(2, 6))
        bottlenecks = "backbone.res2.0.conv3.weight" in state
        sizes = {
            "depth": next((d for d, found in BLOCKS.items() if found == blocks and (d >= 50) == bottlenecks), None),
            "width": size("backbone.stem.conv1.weight"),
            "norm": "GN" if f"{norm}weight" in state and f"{norm}running_mean" not in state else None,
            "hidden_dim": size(f"{predictor}query_feat.weight", 1),
            "mask_dim": size(f"{pixel}mask_features.weight"),
            "num_feature_levels": size(f"{predictor}level_embed.weight"),
            "encoder_layers": count(encoder),
            "encoder_ffn": size(f"{encoder}0.linear1.weight"),
            "decoder_layers": count(ffn),
            "decoder_ffn": size(f"{ffn}0.linear1.weight"),
            "num_queries": size(f"{predictor}query_feat.weight"),
            "num_classes": logits and logits - 1,
        }
        config = ModelConfig(**{name: value for name, value in sizes.items() if value is not None})
        samples, levels = size(f"{encoder}0.self_attn.attention_weights.bias"), config.num_feature_levels
        if samples is not None and samples != config.nheads * config.n_points * levels:
            raise InputError(
                f"expected a config with a model that is not of {config.nheads} heads and {config.n_points} points: "
                f"its {samples} samples a query on {levels} levels do not say how many of either"
            )
        return config
