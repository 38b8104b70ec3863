"""MemoryState: what one batch of agents remembers, as tensors with names, and as bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..errors import FingerprintMismatch, StateError

FORMAT = "deltamem-state-2"
FORMAT_1 = "deltamem-state-1"  # still read: each field is metadata of its own, the layout as a JSON string
METADATA = "deltamem"  # one key alone: safetensors keeps several in no certain order
Layout = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fingerprint:
    """What made a state: hashes of the adapter and of the backbone (hexadecimal)."""

    adapter: str
    backbone: str

    def __str__(self) -> str:
        return f"{self.adapter}/{self.backbone}"

    def check(self, other: "Fingerprint") -> None:
        """Raise FingerprintMismatch, naming which part differs, unless ``other`` is the same."""
        for part in ("adapter", "backbone"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine != theirs:
                raise FingerprintMismatch(
                    f"the state was made by {part} {theirs}, this model has {part} {mine}: load the {part} that made "
                    "the state, or write its messages again into a new state"
                )


@dataclass(frozen=True)
class MemoryState:
    """The states of all corrected layers for a batch of rows. Immutable: every method returns a new one.

    Attributes:
        tensors: attention module name -> (B, H, r, r) float32.
        sub_states: name -> the state heads (indices into H) that belong to it.
        fingerprint: the adapter and backbone that the numbers belong to.
    """

    tensors: Mapping[str, Tensor]
    sub_states: Layout
    fingerprint: Fingerprint

    @property
    def batch_size(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def _heads(self, name: str) -> list[int]:
        if name not in self.sub_states:
            raise StateError(f"no sub-state {name!r}; this state has {sorted(self.sub_states)}")
        return list(self.sub_states[name])

    def _map(self, change: Any) -> "MemoryState":
        return replace(self, tensors={name: change(name, t) for name, t in self.tensors.items()})

    def select(self, name: str) -> "MemoryState":
        """One sub-state alone: tensors (B, heads of ``name``, r, r)."""
        heads = self._heads(name)
        part = self._map(lambda _, t: t[:, heads].clone())
        return replace(part, sub_states={name: tuple(range(len(heads)))})

    def replace(self, name: str, part: "MemoryState") -> "MemoryState":
        """This state with the sub-state ``name`` taken from ``part``; all other heads stay bit-identical."""
        heads = self._heads(name)
        theirs = part._heads(name)
        self.fingerprint.check(part.fingerprint)
        self._check_like(part, len(heads), len(theirs), name)

        def put(key: str, t: Tensor) -> Tensor:
            out = t.clone()
            out[:, heads] = part.tensors[key][:, theirs].to(t.device)
            return out

        return self._map(put)

    def _check_like(self, part: "MemoryState", heads: int, theirs: int, name: str) -> None:
        if set(part.tensors) != set(self.tensors):
            raise StateError(f"sub-state {name!r} covers other layers: {sorted(set(part.tensors) ^ set(self.tensors))}")
        for key, t in self.tensors.items():
            other = part.tensors[key]
            want = (t.shape[0], heads, *t.shape[2:])
            got = (other.shape[0], theirs, *other.shape[2:])
            if want != got or other.dtype != t.dtype:
                raise StateError(
                    f"sub-state {name!r} of {key}: expected shape {want} {t.dtype}, got {got} {other.dtype}"
                )

    def reset(self, name: str | None = None) -> "MemoryState":
        """Zero one sub-state (None: all of them); all other heads stay bit-identical."""
        heads = self._heads(name) if name is not None else sorted(h for hs in self.sub_states.values() for h in hs)

        def zero(_: str, t: Tensor) -> Tensor:
            out = t.clone()
            out[:, heads] = 0
            return out

        return self._map(zero)

    def rows(self, index: Sequence[int] | Tensor) -> "MemoryState":
        """The rows ``index``, in that order, repeats allowed."""
        where = torch.as_tensor(index)
        return self._map(lambda _, t: t.index_select(0, where.to(t.device)))

    def repeat(self, times: int) -> "MemoryState":
        """Each row ``times`` times in turn: row i becomes rows i*times … i*times + times - 1."""
        return self._map(lambda _, t: t.repeat_interleave(times, dim=0))

    @staticmethod
    def stack(states: Sequence["MemoryState"]) -> "MemoryState":
        """One batch from several states of the same adapter and backbone."""
        if not states:
            raise StateError("stack needs at least one state")
        first = states[0]
        for other in states[1:]:
            first._check_layout(other)
        return first._map(lambda name, _: torch.cat([s.tensors[name] for s in states]))

    def distance(self, other: "MemoryState") -> dict[str, float]:
        """How far apart two states are: sub-state -> Frobenius norm of the difference, over its heads and all layers.

        Raises:
            FingerprintMismatch, StateError: they are of another adapter, backbone or layout, or have other rows.
        """
        self._check_layout(other)
        if other.batch_size != self.batch_size:
            raise StateError(f"states of {self.batch_size} and {other.batch_size} rows: take the same rows of both")
        apart = [t - other.tensors[name].to(t.device) for name, t in self.tensors.items()]
        return {
            name: float(torch.stack([t[:, list(heads)].norm().to(apart[0].device) for t in apart]).norm())
            for name, heads in self.sub_states.items()
        }

    def _check_layout(self, other: "MemoryState") -> None:
        """All but the number of rows is the same."""
        self.fingerprint.check(other.fingerprint)
        if dict(other.sub_states) != dict(self.sub_states) or set(other.tensors) != set(self.tensors):
            raise StateError(f"states of different layouts: {dict(self.sub_states)} and {dict(other.sub_states)}")
        for name, t in self.tensors.items():
            if (t.shape[1:], t.dtype) != (other.tensors[name].shape[1:], other.tensors[name].dtype):
                raise StateError(f"states of {name} differ: {_describe(t)} and {_describe(other.tensors[name])}")

    def to(self, device: torch.device | str) -> "MemoryState":
        return self._map(lambda _, t: t.to(device))

    def detach(self) -> "MemoryState":
        """Cut from autograd."""
        return self._map(lambda _, t: t.detach())

    def to_bytes(self) -> bytes:
        """Safetensors bytes, the same for the same state; layout, fingerprint and a checksum are in their metadata."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "sub_states": {name: list(heads) for name, heads in self.sub_states.items()},
            "adapter": self.fingerprint.adapter,
            "backbone": self.fingerprint.backbone,
        }
        tensors = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        fields["sha256"] = _checksum(fields, tensors)
        return save_safetensors(tensors, metadata={METADATA: json.dumps(fields, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "MemoryState":
        """Read back :meth:`to_bytes`. Raises StateError when the bytes are damaged or of another format."""
        try:
            tensors = load_safetensors(data)
            fields = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
            if METADATA in fields:
                fields = json.loads(fields[METADATA])
            if (version := fields.get("format")) in (FORMAT, FORMAT_1):
                layout = json.loads(fields["sub_states"]) if version == FORMAT_1 else fields["sub_states"]
                heads = {name: tuple(own) for name, own in layout.items()}
                fingerprint, said = Fingerprint(fields["adapter"], fields["backbone"]), fields.pop("sha256")
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"these {len(data)} bytes are not a memory state ({error!r}): restore them from a backup"
            ) from error
        if version not in (FORMAT, FORMAT_1):
            raise StateError(f"memory state format {version!r} is not {FORMAT!r}: use the version that wrote it")
        for name, t in tensors.items():
            if t.dtype != torch.float32 or t.ndim != 4:
                raise StateError(f"memory state {name}: expected (B, H, r, r) float32, got {_describe(t)}")
        if not tensors or _checksum(fields, tensors) != said:
            raise StateError(f"these {len(data)} bytes do not match their checksum: restore them from a backup")
        return cls(tensors, heads, fingerprint)


def _describe(t: Tensor) -> str:
    return f"{tuple(t.shape)} {t.dtype}"


def _checksum(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {_describe(tensors[name])}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
