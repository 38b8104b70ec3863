"""Whether an adapter fits a model: which weights belong to which attention module, and whether their shapes agree."""

from torch import Tensor, nn

from ..errors import AdapterError
from .adapter import Adapter, select_attention
from .backbones import Attention, find_attention
from .config import HEADS
from .layer import layer_shapes


def check_fit(model: nn.Module, adapter: Adapter) -> None:
    """Whether ``adapter`` could be attached to ``model``, which may be without weights (on the device "meta").

    Raises:
        AdapterError: the adapter's layers or shapes are not the model's; both are named in numbers.
        BackboneError: the model has no known attention.
    """
    sizes = _sizes(find_attention(model), adapter)
    try:
        attentions = select_attention(model, adapter.config)
        for attention, weights in zip(attentions, match(adapter, attentions).values(), strict=True):
            shapes = layer_shapes(adapter.config, attention.hidden_size, attention.widths)
            check_shapes(attention.name, weights, shapes)
    except AdapterError as error:
        raise AdapterError(f"{sizes}; {error}") from error


def match(adapter: Adapter, attentions: list[Attention]) -> dict[str, dict[str, Tensor]]:
    """The adapter's weights for each attention module: by its name, or by the end of it (wrapped or bare models)."""
    matched, used = {}, set()
    for attention in attentions:
        own = [
            key
            for key in adapter.layers
            if key == attention.name or attention.name.endswith(f".{key}") or key.endswith(f".{attention.name}")
        ]
        if len(own) != 1:
            raise AdapterError(
                f"the adapter has {len(own) or 'no'} weights for {attention.name}; it was trained for "
                f"{adapter.backbone or 'another backbone'} with layers {sorted(adapter.layers)[:3]} …"
            )
        matched[attention.name] = adapter.layers[own[0]]
        used.add(own[0])
    if not adapter.config.target_layers and (unused := sorted(set(adapter.layers) - used)):
        raise AdapterError(f"the adapter has weights for layers that the model has not: {unused[:3]} …")
    return matched


def check_shapes(module: str, weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises AdapterError when one attention module's weights are not those of ``shapes``."""
    for name, shape in shapes.items():
        if name not in weights:
            raise AdapterError(f"the adapter has no {name} for {module}: its files and its config do not agree")
        got = tuple(weights[name].shape)
        if got != shape and not (name == "delta_scale_raw" and weights[name].numel() in (1, 4, shape[0])):
            raise AdapterError(f"{module}.{name}: the model needs shape {shape}, the adapter has {got}")
    if extra := sorted(set(weights) - set(shapes)):
        raise AdapterError(f"the adapter has weights that its config does not use: {module}.{extra}")


def _sizes(attentions: list[Attention], adapter: Adapter) -> str:
    """What adapter and model measure, side by side; the first layer stands for all."""
    first = next(iter(adapter.layers.values()), {})
    hidden = first["memory_q_proj"].shape[-1] if "memory_q_proj" in first else "unknown"
    widths = ", ".join(f"{h} {first[f'delta_{h}_proj'].shape[0]}" for h in HEADS if f"delta_{h}_proj" in first)
    model = attentions[0]
    own = ", ".join(f"{head} {width}" for head, width in model.widths.items())
    return (
        f"the adapter has {len(adapter.layers)} layers for hidden size {hidden} and projections {widths}, the model "
        f"{len(attentions)} layers with hidden size {model.hidden_size} and projections {own}"
    )
