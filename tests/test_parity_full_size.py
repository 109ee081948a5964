"""The released depth models at their true size, by the weight rule of `../shared/parity`: every key counts.

About 20 CPU seconds each, half of it for drawing 390 and 464 million weights (2 GB).
"""

import numpy as np
import parity
import torch
from test_modeling_unidepth import PARITY_CAMERA, assert_output, normalised

from bokehdepth.released.convert import convert_state

STRENGTHS = torch.tensor([[0.0, 10, 20, 30]])


@torch.no_grad()
def test_numbers_of_the_released_depth_anything_at_full_size(parity_root):
    arrays = np.load(parity_root / "open" / "D2_dav2_dsfa_vitl_full.npz")
    model, _ = convert_state(parity.released_weights(parity_root / "G_dav2_dsfa_vitl_keys.json"))
    frames = torch.cat([normalised("D.image", (1, 3, 70, 98))[:, None], normalised("D.stack", (1, 3, 3, 70, 98))], 1)
    cases = {"sdpa_on/no_stack": 1, "sdpa_off/stack_k10_20_30": 4, "sdpa_on/stack_k10_20_30": 4}
    for name, count in cases.items():
        for block in model.dsfa.values():
            block.space_attn.scale = 1 / 128 if name.startswith("sdpa_on") else 128**-0.5
        depth = model(frames[:, :count], STRENGTHS[:, :count]).predicted_depth
        parity.assert_stored(arrays, f"f32/{name}", depth, 1e-4, by="std")


@torch.no_grad()
def test_numbers_of_the_released_unidepth_at_full_size(parity_root):
    arrays = np.load(parity_root / "open" / "E2_unidepth_dsfa_vitl_full.npz")
    model, _ = convert_state(parity.released_weights(parity_root / "G_unidepth_dsfa_vitl_keys.json"))
    stack = normalised("E.stack", (1, 3, 3, 140, 196))
    frames = torch.cat([normalised("E.image", (1, 3, 140, 196))[:, None], stack], dim=1)
    lone = model(frames[:, :1], STRENGTHS[:, :1]).predicted_depth[:, None]
    parity.assert_stored(arrays, "sdpa_on/no_stack_predicted/depth_only", lone, 1e-3, by="std")
    # The frames are the same from here on: they are encoded once.
    levels = model.pixel_encoder(frames.flatten(0, 1))
    model.pixel_encoder.forward = lambda pixels: levels
    assert_output(arrays, "sdpa_on/stack_k10_20_30_predicted", model(frames, STRENGTHS))
    assert_output(arrays, "sdpa_on/stack_k10_20_30_given", model(frames, STRENGTHS, PARITY_CAMERA))
    without_k = model(frames, 0 * STRENGTHS).predicted_depth[:, None]
    parity.assert_stored(arrays, "sdpa_on/stack_k_none/depth_only", without_k, 1e-3, by="std")
