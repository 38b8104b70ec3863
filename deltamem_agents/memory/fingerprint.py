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
    """Hash of the live config fields and of every value (as float32: the dtype of the file does not matter)."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def backbone_fingerprint(model: nn.Module) -> str:
    """Hash of the names, shapes and 64 evenly spaced values (as bfloat16) of every parameter of the frozen model.

    The same checkpoint has the same hash in float32 and in bfloat16 and on every device. Quantised, it has another one:
    what it writes differs.
    """
    digest = hashlib.sha256()
    sampled = []
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and parameter.is_floating_point():
            flat = _plain(parameter.detach()).flatten()
            step = max(1, flat.numel() // SAMPLES)
            sampled.append(flat[::step][:SAMPLES].to(torch.bfloat16))
    for part in _to_cpu(sampled):
        digest.update(part.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _plain(value: Tensor) -> Tensor:
    """A quantised weight that is a tensor of its library's own class, as the numbers that it stands for."""
    return value if type(value) is Tensor else value.dequantize()


def _to_cpu(parts: list[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU, in the same order, with one transfer for each device."""
    moved: list[Tensor] = list(parts)
    for device in {p.device for p in parts}:
        here = [i for i, p in enumerate(parts) if p.device == device]
        joined = torch.cat([parts[i] for i in here]).cpu()
        for i, part in zip(here, joined.split([parts[i].numel() for i in here]), strict=True):
            moved[i] = part
    return moved
