"""Export: a finished run's network, for programs without jaxkd.

    jaxkd export WORKDIR --format stablehlo
    jaxkd serve-check WORKDIR/export/stablehlo/student_seed_0

Four formats, one file each here: a graph with its variables (`stablehlo`),
tensors in the layout of Hugging Face (`weights`), the tree of variables for
orbax (`trees`), and `onnx`. Beside each lie export.json, what is known of it;
parity.npz, inputs and what the trained network makes of them; and README.md,
a model card. What was written is read back and compared with the trained
network before it is put in its place.
"""

from jaxkd.export.exporting import FORMATS, Exported, export
from jaxkd.export.serving import serve_check

__all__ = ["FORMATS", "Exported", "export", "serve_check"]
