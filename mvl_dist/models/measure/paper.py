"""What the paper prints of its models' costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperFigures:
    """What the paper prints for a model; None where it prints nothing.

    Attributes:
        parameters_m: all parameters in millions.
        trainable_m: trained ones in millions.
        gflop: of a sample's forward; about 4,000 times too low for the models with the block.
        ms: of a sample's inference on its A100.
    """

    parameters_m: float
    trainable_m: float | None
    gflop: float | None
    ms: float


# Tables 4 and 5; the sums of Table 5's two columns where Table 4 has no row.
PAPER_FIGURES = {
    "vit_baseline": PaperFigures(1.16, 1.16, None, 2.47),
    "vit_mlp": PaperFigures(220.45, None, 0.43, 5.75),
    "vit_depth": PaperFigures(223.24, None, 0.48, 5.86),
    "medvisionllama": PaperFigures(223.67, 5.43, 0.45, 6.48),
    "medvisionllama_linear": PaperFigures(224.90, 6.78, None, 7.32),
}
