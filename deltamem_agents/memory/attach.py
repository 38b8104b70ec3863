"""attach: put δ-mem beside the attention layers of a model, without touching its code.

A pre-hook on each attention module reads (and writes) with the hidden states that come in; forward hooks on the
corrected projections add the corrections to their output. Nothing is kept on the model between calls, nothing depends
on the architecture's rope, norms, cache or attention kernel, and ``detach`` leaves the module tree as it was.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import BackboneError, StateError
from .accumulate import accumulating, can_accumulate
from .adapter import Adapter, select_attention
from .backbones import Attention
from .binding import Bound, Context, SubStates
from .fingerprint import backbone_fingerprint
from .fit import check_shapes, match
from .generation import TOKEN_MASK, follow_generation
from .layer import DeltaMemLayer
from .state import Fingerprint, MemoryState


def attach(
    model: nn.Module, adapter: Adapter, *, dtype: torch.dtype | None = None, trainable: bool = False
) -> "DeltaMemory":
    """Attach ``adapter`` to ``model`` (load, quantise and shard first; attach; then compile).

    Args:
        model: any decoder of transformers with q, k, v, o projections (see backbones.py).
        adapter: from :func:`load_adapter` or :func:`new_adapter`.
        dtype: of the adapter's weights; default the model's. The state is float32 always.
        trainable: whether the adapter's weights require gradients, and the fingerprint follows them.

    Raises:
        AdapterError: the adapter's layers or shapes are not the model's.
        BackboneError: the model has no known attention, or has a memory attached already.
    """
    return DeltaMemory(model, adapter, dtype=dtype, trainable=trainable)


class DeltaMemory(nn.Module):
    """δ-mem attached to one model. Outside of :meth:`bind` the model computes exactly what it did before.

    Attributes:
        config: of the adapter.
        backbone: id or path of the backbone that the adapter was trained on, if known.
        layers: a :class:`DeltaMemLayer` for each attention module that is corrected.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter, *, dtype: torch.dtype | None = None, trainable: bool = False
    ) -> None:
        super().__init__()
        if getattr(model, "_deltamem_attached", False):
            raise BackboneError("this model has a memory attached already: call its detach() first")
        self.config = adapter.config
        self.backbone = adapter.backbone
        self._model = [model]  # in a list: not a child of this module
        attentions = select_attention(model, self.config)
        self._attentions = attentions
        self._names = [a.name for a in attentions]
        weights = match(adapter, attentions)
        layers = [_build(adapter, attention, weights[attention.name], dtype) for attention in attentions]
        self.layers = nn.ModuleList(layers).requires_grad_(trainable)
        self._trainable = trainable
        self._given = Fingerprint(adapter.fingerprint, backbone_fingerprint(model))
        self._untrained = self.adapter().fingerprint if trainable else None
        self._labels = {self._given}  # of the states that this memory may bind
        self._context = Context()
        self._handles = self._hook(model, attentions, layers)
        self._attached = True
        model._deltamem_attached = True  # type: ignore[assignment]

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    @property
    def fingerprint(self) -> Fingerprint:
        """What new states belong to. If trainable: :meth:`adapter` as it is now, hashed each time that this is asked.

        A compiled training step is no place to hash: in it, states belong to the adapter that was attached.
        """
        if not self._trainable or torch.compiler.is_compiling():
            return self._given
        now = self.adapter().fingerprint
        fingerprint = self._given if now == self._untrained else Fingerprint(now, self._given.backbone)
        self._labels.add(fingerprint)
        return fingerprint

    def adapter(self) -> Adapter:
        """The weights as they are now, for saving."""
        tensors = {
            f"{name}.{key}": value.detach().clone()
            for name, layer in zip(self._names, self.layers, strict=True)
            for key, value in layer.named_parameters()
        }
        return Adapter(self.config, tensors, self.backbone)

    def new_state(
        self, batch_size: int = 1, device: torch.device | str | None = None, *, hashed: bool = True
    ) -> MemoryState:
        """Empty states: zeros of (batch_size, H, r, r) float32 per layer.

        ``hashed=False`` is for a training step, whose states nobody keeps: they carry the fingerprint of the adapter
        that was attached, and no weights are hashed.
        """
        shape = (batch_size, self.config.num_state_heads, self.config.rank, self.config.rank)
        places: dict[Any, list[str]] = {}
        for name, layer in zip(self._names, self.layers, strict=True):
            places.setdefault(device or next(layer.parameters()).device, []).append(name)
        made = {n: t for where, own in places.items() for n, t in zip(own, _zeros(len(own), shape, where), strict=True)}
        tensors = {name: made[name] for name in self._names}
        return MemoryState(tensors, dict(self.config.sub_states), self.fingerprint if hashed else self._given)

    @contextmanager
    def bind(
        self,
        state: MemoryState,
        write: bool | Tensor = True,
        segment_ids: Tensor | None = None,
        sub_states: SubStates = None,
        *,
        packed: bool = False,
        token_mask: Tensor | None = None,
        trace: bool = False,
        accumulate: bool = False,
    ) -> Iterator[Bound]:
        """Calls of the model inside the ``with`` read ``state`` and, if asked, write.

        Args:
            state: rows for the rows of the batch; it is not changed, the result is ``bound.state``.
            write: True, False (read only), or a bool tensor (B,) or (B, T) of who writes. Under ``model.generate`` a
                row writes its prompt and the tokens that it went on from, as it would alone: not its last token, nor
                what is fed to it while others go on. That needs greedy search or sampling, with a cache.
            segment_ids: (B, T) message or sentence numbers for mean writes (SSW); tokens of -1 do not write.
            sub_states: names that are written to (None: all), or name -> bool tensor (B, T) to route token by token.
            packed: several writes in one row: a segment's mean is seen by the tokens of later segments (SSW only).
            token_mask: (B, T) bool, False on padding; by default the model's own 2-D attention_mask (B, past + T).
            trace: collect the write gates for ``bound.gates``.
            accumulate: for a few tokens that only read, without gradients: projections that are plain linear layers add
                their output to the corrections (accumulate.py), faster and rounded once more. Not for several threads.

        Raises:
            FingerprintMismatch, StateError: the state is not of this adapter and backbone, or of another shape or
                dtype; names, masks or segment numbers do not fit; ``write`` is something else; a call of the model has
                a prepared attention mask, which does not say what is padding, and there is no ``token_mask``.
        """
        self._check(state, sub_states)
        _check_write(write)
        names = (sub_states,) if isinstance(sub_states, str) else sub_states
        bound = Bound(state, write, segment_ids, names, packed, token_mask, self.config.num_state_heads, trace)
        with ExitStack() as stack:
            if accumulate:
                if write is not False:
                    raise StateError("accumulate=True is for reading alone: give write=False")
                chosen = [a for a in self._attentions if can_accumulate(a, self.config)]
                bound.accumulate = frozenset(a.name for a in chosen)
                stack.enter_context(accumulating(chosen, self.config, self._context))
            stack.enter_context(self._context.using(bound))
            stack.enter_context(self._checkpointing())
            yield bound

    def detach(self) -> None:
        """Remove every hook: the module tree is what it was before :func:`attach`. Again, it does nothing."""
        if not self._attached:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._attached = False
        self.model.__dict__.pop("_deltamem_attached", None)

    def _check(self, state: MemoryState, sub_states: SubStates) -> None:
        if not self._attached:
            raise StateError("this memory is detached from its model: attach it again before binding a state")
        self._check_origin(state.fingerprint)
        layout = dict(self.config.sub_states)
        if dict(state.sub_states) != layout:
            raise StateError(f"the state has sub-states {dict(state.sub_states)}, this memory has {layout}")
        side = (self.config.num_state_heads, self.config.rank, self.config.rank)
        if set(state.tensors) != set(self._names):
            raise StateError(f"the state covers other layers: {sorted(set(state.tensors) ^ set(self._names))}")
        for name, tensor in state.tensors.items():
            if tuple(tensor.shape[1:]) != side or tensor.dtype != torch.float32:
                raise StateError(
                    f"state of {name}: expected shape (B, {', '.join(map(str, side))}) float32, got "
                    f"{tuple(tensor.shape)} {tensor.dtype}"
                )
        asked = (sub_states,) if isinstance(sub_states, str) else tuple(sub_states or ())
        if unknown := [name for name in asked if name not in layout]:
            raise StateError(f"no sub-state {unknown[0]!r}; this memory has {sorted(layout)}")

    def _check_origin(self, made_by: Fingerprint) -> None:
        """A trainable memory goes on with the states that it made at earlier steps of its training."""
        if not self._trainable:
            self._given.check(made_by)
        elif not torch.compiler.is_compiling() and made_by not in self._labels:
            self.fingerprint.check(made_by)

    def _hook(self, model: nn.Module, attentions: list[Attention], layers: list[DeltaMemLayer]) -> list[Any]:
        handles: list[Any] = []
        for depth, (module, position) in enumerate(_callers(model, attentions[0].name)):
            begin, end = partial(self._begin_call, depth, position), partial(self._end_call, depth)
            handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            handles.append(module.register_forward_hook(end, always_call=True))
            handles += follow_generation(module, self._context)
        for attention, layer in zip(attentions, layers, strict=True):
            before = partial(self._before_attention, attention.name, layer)
            handles.append(attention.module.register_forward_pre_hook(before, with_kwargs=True))
            for head in self.config.delta_heads:
                projection = attention.projections[head]
                after = partial(self._after_projection, attention.name, layer, head, projection)
                handles.append(projection.module.register_forward_hook(after))
        return handles

    def _begin_call(
        self, depth: int, position: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """``position``: of attention_mask among the arguments."""
        bound = self._context.bound
        if bound is None:
            return None
        if TOKEN_MASK in kwargs:
            bound.begin_call(depth, kwargs[TOKEN_MASK])
            return args, {name: value for name, value in kwargs.items() if name != TOKEN_MASK}
        bound.begin_call(depth, kwargs.get("attention_mask", args[position] if len(args) > position else None))
        return None

    def _end_call(self, depth: int, *_: Any) -> None:
        if self._context.bound is not None:
            self._context.bound.end_call(depth)

    def _before_attention(
        self, name: str, layer: DeltaMemLayer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        bound = self._context.bound
        if bound is not None:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            bound.run_layer(name, layer, x, self._context.recorded)

    def _after_projection(
        self, name: str, layer: DeltaMemLayer, head: str, projection: Any, _: nn.Module, __: Any, output: Tensor
    ) -> Tensor | None:
        bound = self._context.bound
        if bound is None or name in bound.deltas:
            return None
        return layer.correct(head, projection, output, bound.reads[name])

    def _checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For one checkpointed layer: remember the state that it began with, and begin there when it is recomputed."""
        recorded: dict[str, Tensor] = {}
        bound = self._context.bound
        assert bound is not None
        return self._context.using(bound, recorded), self._replaying(bound.replay(), recorded)

    @contextmanager
    def _replaying(self, again: Bound, recorded: dict[str, Tensor]) -> Iterator[None]:
        again.current = dict(recorded)
        with self._context.using(again):
            yield

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """While bound, gradient checkpointing recomputes a layer from the state it began with: it writes once."""
        function = partial(checkpoint, use_reentrant=False, context_fn=self._checkpoint_contexts)
        changed = []
        if self.model.training and torch.is_grad_enabled():
            for module in self.model.modules():
                if (
                    getattr(module, "gradient_checkpointing", False)
                    and "_gradient_checkpointing_func" in module.__dict__
                ):
                    changed.append((module, module.__dict__["_gradient_checkpointing_func"]))
                    module.__dict__["_gradient_checkpointing_func"] = function
        try:
            yield
        finally:
            for module, before in changed:
                module.__dict__["_gradient_checkpointing_func"] = before


def _zeros(count: int, shape: tuple[int, ...], device: Any) -> tuple[Tensor, ...]:
    """``count`` empty states in one piece of memory: one kernel, not one for each layer."""
    return torch.zeros((count, *shape), device=device).unbind(0)


def _check_write(write: bool | Tensor) -> None:
    if isinstance(write, bool) or (isinstance(write, Tensor) and write.dtype == torch.bool and write.ndim in (1, 2)):
        return
    got = f"a tensor of {write.dtype}, {tuple(write.shape)}" if isinstance(write, Tensor) else repr(write)
    raise StateError(f"write is {got}: give True, False, or a bool tensor (B,) or (B, T)")


def _build(
    adapter: Adapter, attention: Attention, weights: dict[str, Tensor], dtype: torch.dtype | None
) -> DeltaMemLayer:
    layer = DeltaMemLayer(adapter.config, attention.hidden_size, attention.widths)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    check_shapes(attention.name, weights, shapes)
    for name in shapes:
        setattr(layer, name, nn.Parameter(weights[name].detach().clone()))
    reference = next((p for p in attention.module.parameters() if p.device.type != "meta"), None)
    device = reference.device if reference is not None else "cpu"
    floating = reference.dtype if reference is not None and reference.is_floating_point() else torch.float32
    return layer.to(device=device, dtype=dtype or floating)


def _callers(model: nn.Module, attention: str) -> Iterator[tuple[nn.Module, int]]:
    """The modules that take an attention mask, from ``model`` to the owner of the layers; its place in their arguments.

    Each of them may be the one that is called.
    """
    parts = attention.split(".")
    for end in range(len(parts)):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, nn.ModuleList):
            return
        arguments = list(inspect.signature(module.forward).parameters)
        if "attention_mask" in arguments:
            yield module, arguments.index("attention_mask")
