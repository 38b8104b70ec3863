"""Which adapters are compared with the base, and what each of them changes.

The groups are those of the δ-mem paper (arXiv 2605.12357: corrected projections, corrected layers, write modes), with
the rank, the number of states and routing. A variant changes one thing against the reference of its group. Routing
needs two sub-states, so the numbers of states and the write modes are compared without it, with ``unrouted``.
Sessions in which a sub-state is emptied teach routed adapters only; the others learn from others in their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoConfig

from ..config import DEFAULT_ADAPTER, find_adapter
from ..errors import RecipeError
from ..memory import AdapterConfig
from ..training.recipe import BackboneRecipe, Recipe, load_recipe

BASE, UNROUTED = "base", "unrouted"
PROJECTIONS = ("q", "k", "v", "o", "qo", "qkvo")
RANKS = (4, 8, 16)
STATES = (1, 2, 4)


@dataclass(frozen=True)
class Variant:
    """``changes`` are fields of AdapterConfig that differ from those of the base."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Variants that are compared.

    Attributes:
        members: label -> name of the variant.
        paper: what the paper reports, in words; "" where it reports nothing.
        order: the same as labels, best first; those that it does not order stand together.
    """

    name: str
    title: str
    members: Mapping[str, str]
    paper: str = ""
    order: tuple[tuple[str, ...], ...] = ()


def base_recipe(adapter: str = DEFAULT_ADAPTER, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in an adapter's folder, on the backbone in that folder, which is not trained again.

    Args:
        adapter: a folder, or a name that is known here.
        overrides: as for :func:`..training.recipe.load_recipe`.

    Raises:
        RecipeError: no such folder, no recipe.yaml in it, or neither a backbone/ nor a recipe that names one.
    """
    folder = find_adapter(adapter)
    if folder is None:
        raise RecipeError(f"adapter {adapter!r} is not a folder here: give one that holds recipe.yaml and backbone/")
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    if recipe.backbone.path is not None:
        return recipe
    if not (folder / "backbone" / "config.json").is_file():
        raise RecipeError(f"{folder} holds no backbone/: train it first, or set backbone.path")
    return replace(recipe, backbone=BackboneRecipe(path=str((folder / "backbone").resolve())))


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """All variants by name, the base first. Variants that would be the base itself are left out.

    The rank changes with alpha, so that corrections are scaled alike (alpha / rank). Thirds of the layers have the same
    number of layers, which overlap where it does not divide by three; backbones of less than three layers have none.

    Raises:
        RecipeError: the recipe is no base: it must be a routed MSW adapter of all layers, with corrections of
            :data:`PROJECTIONS`.
    """
    base = _config(recipe)
    found = [Variant(BASE, {})]
    found += [Variant(f"heads_{p}", {"delta_heads": list(p)}) for p in PROJECTIONS if tuple(p) != base.delta_heads]
    found += [Variant(f"layers_{name}", {"target_layers": own}) for name, own in _thirds(recipe).items()]
    scale = base.alpha / base.rank
    found += [Variant(f"rank_{r}", {"rank": r, "alpha": scale * r}) for r in RANKS if r != base.rank]
    found.append(Variant(UNROUTED, {"sub_states": {}}))
    counts = [n for n in STATES if n != base.num_state_heads]
    found += [Variant(f"states_{n}", {"num_state_heads": n, "sub_states": {}}) for n in counts]
    ssw = {"num_state_heads": 1, "memory_write_granularity": "message_mean", "sub_states": {}}
    return {variant.name: variant for variant in [*found, Variant("ssw", ssw)]}


def groups_of(recipe: Recipe) -> list[Group]:
    """The comparisons that the variants are made for. Raises RecipeError as :func:`variants_of`."""
    base = _config(recipe)
    heads = {"+".join(p): BASE if tuple(p) == base.delta_heads else f"heads_{p}" for p in PROJECTIONS}
    layers = {name: f"layers_{name}" for name in _thirds(recipe)} | {"all": BASE}
    ranks = {r: f"rank_{r}" for r in RANKS} | {base.rank: BASE}
    states = {n: f"states_{n}" for n in STATES} | {base.num_state_heads: UNROUTED}
    return [
        Group(
            "heads",
            "corrected projections",
            heads,
            "q+k+v+o > q+o > o > q, v > k",
            (("q+k+v+o",), ("q+o",), ("o",), ("q", "v"), ("k",)),
        ),
        Group(
            "layers",
            "corrected layers",
            layers,
            "all > middle > front, back",
            (("all",), ("middle",), ("front", "back")) if len(layers) > 1 else (),
        ),
        Group("rank", "rank", {str(rank): name for rank, name in sorted(ranks.items())}),
        Group("states", "state heads, not routed", {str(n): name for n, name in sorted(states.items())}),
        Group(
            "write",
            "write mode, not routed",
            {"TSW": "states_1", "SSW": "ssw", "MSW": UNROUTED},
            "MSW best on a 3B model, TSW best on a 4B model; ours is smaller than both, so MSW is expected first",
            (("MSW",), ("TSW", "SSW")),
        ),
        Group("routing", "routing of messages to sub-states", {"routed": BASE, "not routed": UNROUTED}),
    ]


def recipe_of(recipe: Recipe, variant: Variant, seed: int) -> Recipe:
    """The base's recipe with the variant's changes; ``seed`` draws the first weights and the sessions.

    SSW is never compiled, for means of messages have no static shape; nothing that is learnt depends on it.
    """
    config = {**recipe.adapter.config, **variant.changes}
    token = AdapterConfig.from_dict(config).memory_write_granularity == "token"
    train = replace(recipe.adapter.train, compile=recipe.adapter.train.compile and token)
    adapter = replace(recipe.adapter, config=config, train=train)
    return replace(recipe, name=f"{recipe.name}-{variant.name}", seed=seed, adapter=adapter)


def _config(recipe: Recipe) -> AdapterConfig:
    """The base's config. RecipeError: it cannot be one."""
    config = AdapterConfig.from_dict(recipe.adapter.config)
    reasons = {
        f"delta_heads of {', '.join(PROJECTIONS)}": config.delta_heads in {tuple(p) for p in PROJECTIONS},
        "no target_layers": not config.target_layers,
        "memory_write_granularity token": config.memory_write_granularity == "token",
        "more than one state head": config.num_state_heads > 1,
        "more than one of sub_states": len(config.sub_states) > 1,
        "no adapter.init": recipe.adapter.init is None,
        "backbone.path": recipe.backbone.path is not None,
    }
    if missing := [reason for reason, holds in reasons.items() if not holds]:
        raise RecipeError(f"recipe {recipe.name} cannot be the base of ablations: it needs {', '.join(missing)}")
    return config


def _thirds(recipe: Recipe) -> dict[str, list[int]]:
    """front, middle, back: layer indices, round(L / 3) of them each; none below three layers."""
    try:
        count = AutoConfig.from_pretrained(str(recipe.backbone.path)).get_text_config().num_hidden_layers
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe field backbone.path = {recipe.backbone.path!r} cannot be loaded: {error}") from error
    size = round(count / 3)
    starts = {"front": 0, "middle": (count - size) // 2, "back": count - size}
    return {name: list(range(at, at + size)) for name, at in starts.items()} if count >= 3 else {}
