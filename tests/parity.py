"""Stored numbers of the released code, in `../shared/parity`; its README gives the rule that draws weights and inputs.

The fixture `parity_root` is that folder.
"""

import json
import zlib

import numpy as np
import torch


def close(actual, expected, relative):
    return (actual - expected).abs().max().item() <= relative * expected.abs().max().item()


def draw(name):
    return np.random.Generator(np.random.Philox(key=[1, zlib.crc32(name.encode())]))


def released_weight(name, shape):
    noise = draw(name).standard_normal(shape, dtype=np.float32)
    last = name.split(".")[-1]
    if last.startswith("gamma"):
        weight = 0.3 * (1 + 0.1 * noise)
    elif last == "bias":
        weight = 0.05 * noise
    elif last == "weight" and len(shape) == 1:
        weight = 1 + 0.1 * noise
    elif name.endswith("k_embed.0.weight"):
        weight = 0.05 * noise
    elif last == "weight":
        weight = noise / np.sqrt(np.prod(shape[1:]))
    else:
        weight = 0.2 * noise
    return torch.from_numpy(np.asarray(weight, dtype=np.float32))


def released_weights(keys_file):
    return {name: released_weight(name, shape) for name, shape in json.loads(keys_file.read_text()).items()}


def assert_stored(arrays, name, actual, max_relative, by="largest"):
    expected = torch.from_numpy(arrays[name]).to(actual.dtype)
    stats = arrays[f"{name}__stats"]
    if f"{name}__step" in arrays:
        assert list(actual.shape) == arrays[f"{name}__shape"].tolist()
        actual = actual.reshape(-1)[:: int(arrays[f"{name}__step"])]
    assert actual.shape == expected.shape
    size = stats[3] if by == "largest" else stats[1]
    assert (actual - expected).abs().max().item() <= max_relative * size, name
