"""Stage-2 on Depth Anything as its authors run it: DINOv2's position table interpolated by their rule.

Hub repositories carry this file with `modeling_bokehdepth.py`, which it imports, joined in front of it, see
`hub.folder.joined_source`.
"""

from typing import Any, NoReturn

import torch
import torch.nn.functional as fn
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, AutoModelForDepthEstimation, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.modeling_utils import PreTrainedModel  # noqa: F401 - diffusers looks here for a base that it can load
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from .modeling_bokehdepth import BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation


class OffsetEmbeddings(Dinov2Embeddings):
    """DINOv2's embeddings whose position table is scaled by ``(patches + offset) / side`` (DINOv2's first release).

    transformers scales the table to the wanted size itself. The two differ by a little wherever the photo's patches
    are not those of the table, where both take the table as it is.

    Args:
        config: of the backbone.
        position_offset: as in `BokehDepthAnythingV2Config`.
    """

    def __init__(self, config: Dinov2Config, position_offset: float) -> None:
        super().__init__(config)
        self.position_offset = position_offset

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Returns the position table (1, 1 + N, D) for ``height`` x ``width`` px, interpolated in float32."""
        table = self.position_embeddings
        side = round((table.shape[1] - 1) ** 0.5)
        rows, columns = height // self.patch_size, width // self.patch_size
        if (rows, columns) == (side, side):
            return table
        grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        factors = tuple((count + self.position_offset) / side for count in (rows, columns))
        grid = fn.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


@strict
class BokehDepthAnythingV2Config(BokehDepthAnythingConfig):
    r"""Configuration of `BokehDepthAnythingV2ForDepthEstimation`: that of `BokehDepthAnythingConfig` and one field.

    position_offset (`float`, *optional*, defaults to 0.1):
        Patches added to the wanted count when the position table is scaled, in [0, 1). Depth Anything V2 has 0.1.
    """

    model_type = "bokehdepth_depth_anything_v2"

    position_offset: float | int = 0.1

    def validate_positions(self) -> None:
        """Refuse an offset that would add a patch; part of the `@strict` validation.

        Raises:
            ValueError: with the name of the field, its value and what was wanted.
        """
        if not 0 <= self.position_offset < 1:
            raise ValueError(f"position_offset is {self.position_offset}; wanted a number from 0 up to 1.")


class BokehDepthAnythingV2ForDepthEstimation(BokehDepthAnythingForDepthEstimation):
    """`BokehDepthAnythingForDepthEstimation` with `OffsetEmbeddings`, to equal Depth Anything V2's own code.

    The parameters and their names are the same.
    """

    config: BokehDepthAnythingV2Config
    config_class = BokehDepthAnythingV2Config

    def __init__(self, config: BokehDepthAnythingV2Config) -> None:
        super().__init__(config)
        self.backbone.embeddings = OffsetEmbeddings(config.backbone_config, config.position_offset)
        self.post_init()

    @classmethod
    def from_base(cls, model: DepthAnythingForDepthEstimation, **config_overrides: Any) -> NoReturn:
        """Refused: the result would share a backbone that interpolates by transformers' rule.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{cls.__name__} has no from_base; wanted that of its base class.")


# save_pretrained then copies this file and the one it imports, and writes the entries that remote loading reads.
BokehDepthAnythingV2Config.register_for_auto_class("AutoConfig")
BokehDepthAnythingV2ForDepthEstimation.register_for_auto_class("AutoModelForDepthEstimation")

# As remote code this file runs under another name, and must not replace the classes of the installed package.
if __name__ == "bokehdepth.modeling_bokehdepth_dav2":
    AutoConfig.register(BokehDepthAnythingV2Config.model_type, BokehDepthAnythingV2Config, exist_ok=True)
    AutoModelForDepthEstimation.register(
        BokehDepthAnythingV2Config, BokehDepthAnythingV2ForDepthEstimation, exist_ok=True
    )
