"""Fusion of images with texts from an export folder: a package of torch.export, without the classes of the model.

`bdam_fast.register_operators()` registers the operators that the graph calls; then
`torch.export.load("fusion.pt2").module()(images, input_ids, attention_mask)` has the match of each pair.

Shapes: B pairs, T tokens, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bdam_fast import _native
from training.export.onnx_towers import FUSION

# Shortest text in tokens, one between [CLS] and [SEP]: the graph reads the neighbours of a token.
LEAST_LENGTH = 3


class FusionPackage:
    """The package of an export folder, which runs on the CPU. threads: of PyTorch in this process; 0 to leave them.

    Raises ValueError for a folder without a package, a damaged one, and where the operators are not built.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        path = Path(folder) / FUSION
        if not path.is_file():
            raise ValueError(
                f"re-ranking needs a fusion, and {folder} has no {FUSION}: its run was trained without a fusion and a matching "
                "head, or an earlier version made the export"
            )
        if threads:
            torch.set_num_threads(threads)
        # Registers the operators, which a fusion of transformer layers does not need.
        is_built = _native.available()
        try:
            self.module = torch.export.load(path).module()
        except Exception as error:
            if not is_built:
                raise ValueError(f"{path} needs the operators of bdam_fast ({_native.why_missing()})") from error
            # Of zipfile, json and torch, depending on the place of the damage.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} is damaged: {reason}; copy the export again") from error

    def match(self, images_B3HW: np.ndarray, input_ids_BT: np.ndarray, mask_BT: np.ndarray, pad_id: int) -> np.ndarray:
        """Match of images, normalised, with texts as `OnnxTowers.tokens` gives them, in units of the score; float32 (B,)."""
        missing = max(0, LEAST_LENGTH - input_ids_BT.shape[1])
        tokens = [
            torch.from_numpy(np.pad(values, ((0, 0), (0, missing)), constant_values=padding))
            for values, padding in ((input_ids_BT, pad_id), (mask_BT, 0))
        ]
        with torch.inference_mode():
            return self.module(torch.from_numpy(images_B3HW), *tokens).float().numpy()
