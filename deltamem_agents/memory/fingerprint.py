"""Short hashes that tell one adapter, and one backbone, from another."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import AdapterConfig

SAMPLES = 64  # values of each backbone parameter that enter its hash
DIGITS = 16


def adapter_fingerprint(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> str:
    """Hash of the live config fields and of every value (as float32, so that it does not depend on the file's dtype)."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def backbone_fingerprint(model: nn.Module) -> str:
    """Hash of the names, shapes and 64 evenly spaced values (as bfloat16) of every parameter of the frozen model.

    The same checkpoint has the same hash in float32 and in bfloat16 and on every device.
    """
    digest = hashlib.sha256()
    sampled = []
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and parameter.is_floating_point():
            flat = parameter.detach().flatten()
            step = max(1, flat.numel() // SAMPLES)
            sampled.append(flat[::step][:SAMPLES].to(torch.bfloat16))
    for device in {s.device for s in sampled}:
        joined = torch.cat([s for s in sampled if s.device == device])
        digest.update(joined.view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
