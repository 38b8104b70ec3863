"""What generate() of transformers knows, and the calls that it makes of the model do not say.

It turns the 2-D mask into prepared ones where the cache is static, and it feeds pad tokens to rows that have ended. Two
methods of the model are wrapped: one prepares the inputs of each call, the other the criteria that end the rows.
"""

from functools import wraps
from typing import Any

from torch import Tensor
from transformers import StoppingCriteriaList

from ..errors import StateError
from .binding import Bound, Context, is_token_mask
from .replaced import Replaced

TOKEN_MASK = "deltamem_token_mask"
"""Input that is added to a call made by generate(): (B, T), 0 where nothing is to be read or written, or None."""


class RowEnds(StoppingCriteriaList):
    """The criteria of one generate(). ``ended`` (B,) bool: the rows whose last token they have seen; None at first."""

    ended: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = super().__call__(*args, **kwargs)
        self.ended = now if self.ended is None else now | self.ended
        return now


def follow_generation(module: Any, context: Context) -> list[Replaced]:
    """While something is bound, let ``module.generate`` say with each call which of its tokens count."""
    if not hasattr(module, "prepare_inputs_for_generation"):
        return []
    prepare, criteria = module.prepare_inputs_for_generation, module._get_stopping_criteria

    @wraps(prepare)
    def prepare_and_tell(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = prepare(*args, **kwargs)
        if context.bound is not None and is_token_mask(mask := kwargs.get("attention_mask", ...)):
            inputs[TOKEN_MASK] = _token_mask(context.bound, mask, inputs)
        return inputs

    @wraps(criteria)
    def criteria_that_tell(*args: Any, **kwargs: Any) -> StoppingCriteriaList:
        found: StoppingCriteriaList = criteria(*args, **kwargs)
        if context.bound is not None:
            found = context.bound.ends = RowEnds(found)
        return found

    return [
        Replaced.put(module, "prepare_inputs_for_generation", prepare_and_tell),
        Replaced.put(module, "_get_stopping_criteria", criteria_that_tell),
    ]


def _token_mask(bound: Bound, mask: Tensor | None, inputs: dict[str, Any]) -> Tensor | None:
    """(B, T): what ``mask`` (B, past + T) says of the call's own tokens; none of an ended row's, if anything writes.

    A row alone ends before its last token is fed: in a batch, that token and those after it do not count either.
    """
    x: Tensor = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
    rows, length = x.shape[:2]
    mask = mask if mask is None else mask[:, -length:].bool()
    ended = bound.ends.ended if bound.ends is not None else None
    if ended is None or bound.write is False:
        return mask
    if len(ended) != rows or length != 1:
        raise StateError(
            "only greedy search and sampling with a cache can write while they generate (beams and assistants take "
            "tokens back): bind with write=False, and write the answer afterwards"
        )
    going = ~ended[:, None]
    return going if mask is None else mask & going
