"""Checks of the Triton kernels against the specification, on any device.

GPU tests call them on "cuda". Run as a script, this module interprets the kernels on the CPU, in small shapes:
``python ops_kernel_cases.py NAME``; Triton decides once per process whether it interprets.
"""

import os
import sys
from collections.abc import Callable
from unittest.mock import patch

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from deltamem_agents.ops import (
    GateSpec,
    add_correction,
    chunk_delta_scan,
    delta_scan,
    gated_read,
    gated_scan,
    naive_delta_scan,
    read_correction,
)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # by the dtype that is rounded to
MODES = ("standard", "lambda_outside", "no_lambda")


def scan_inputs(batch: int, length: int, heads: int, rank: int, seed: int = 0) -> list[Tensor]:
    """q, k, v, keep, erase, write, state in float64 on the CPU; memories are long."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, rank)
    q, k = (torch.nn.functional.normalize(torch.randn(shape, generator=g).double(), dim=-1) for _ in range(2))
    v = torch.randn(shape, generator=g).double()
    keep, erase, write = (torch.rand(shape, generator=g).double() for _ in range(3))
    return [q, k, v, 1 - 0.3 * keep, erase, write, torch.randn(batch, heads, rank, rank, generator=g).double()]


def random_mask(*shape: int, share: float = 0.6) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    torch.testing.assert_close(got, want, atol=tolerance * max(1.0, float(want.abs().max())), rtol=tolerance)


def gradients(scan: Callable[..., tuple[Tensor, Tensor]], leaves: list[Tensor], *args: object) -> list[Tensor]:
    """reads, final state, and the gradients of a fixed weighting of them."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    outputs = list(scan(*leaves, *args))
    g = torch.Generator().manual_seed(2)
    loss = sum((x * torch.randn(x.shape, generator=g).to(x.device, x.dtype)).sum() for x in outputs)
    return outputs + list(torch.autograd.grad(loss, leaves))


def check_scan(
    device: str, length: int, rank: int, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float32,
    masked: bool = True,
) -> None:  # fmt: skip
    """Outputs and gradients equal the loop's, also where what is masked is NaN."""
    *tokens, state = scan_inputs(batch, length, heads, rank)
    tokens, state = [x.to(dtype) for x in tokens], state.float()
    mask = random_mask(batch, length, heads) if masked else None
    want = gradients(naive_delta_scan, [*(x.double() for x in tokens), state.double()], mask)
    if mask is not None:
        tokens[1:] = [torch.where(mask[..., None], x, torch.full_like(x, torch.nan)) for x in tokens[1:]]
        mask = mask.to(device)
    got = gradients(triton, [x.to(device) for x in (*tokens, state)], mask)
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        close(a, b, TOLERANCE[torch.float32 if place in (0, 1, 8) else dtype])


def triton(*args: Tensor | None) -> tuple[Tensor, Tensor]:
    return delta_scan(*args, form="triton")  # type: ignore[arg-type]


def check_long(device: str, length: int = 8192) -> None:
    """Many chunks, against the chunks of the CPU in float64."""
    inputs, mask = scan_inputs(1, length, 1, 8), random_mask(1, length, 1)
    want = gradients(chunk_delta_scan, inputs, mask)
    got = gradients(triton, [x.float().to(device) for x in inputs], mask.to(device))
    for a, b in zip(got, want, strict=True):
        close(a, b, 2e-4)


def check_hand_over(device: str, length: int, middle: int) -> None:
    *tokens, state = (x.float().to(device) for x in scan_inputs(2, length, 3, 4))
    reads, final = triton(*tokens, state, None)
    first, between = triton(*(x[:, :middle] for x in tokens), state, None)
    second, end = triton(*(x[:, middle:] for x in tokens), between, None)
    close(torch.cat([first, second], dim=1), reads, 1e-5)
    close(end, final, 1e-5)


def check_silent_heads(device: str, length: int) -> None:
    """What no token wrote keeps its very bits, the sign of a zero too; through the scan and through the gates."""
    spec = GateSpec(3, 4)
    *tokens, state = (x.float().to(device) for x in scan_inputs(2, length, 3, 4))
    state[:, :, 0] = -0.0
    mask = torch.ones(2, length, 3, dtype=torch.bool, device=device)
    mask[0, :, 1] = False
    projected = torch.randn(2, length, spec.columns, generator=torch.Generator().manual_seed(3)).to(device)
    scanned = triton(*tokens, state, mask)[1]
    gated = gated_scan(projected, torch.zeros(12, device=device), None, state, spec, None, mask, form="triton")[1]
    for final in (scanned, gated):
        assert torch.equal(final[0, 1].view(torch.int32), state[0, 1].view(torch.int32))
        assert not torch.equal(final[0, 0], state[0, 0]) and not torch.equal(final[1, 1], state[1, 1])


def gated_inputs(
    spec: GateSpec, batch: int, length: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """projected (a strided view, NaN in padding), biases, state, token mask and write mask."""
    g = torch.Generator().manual_seed(4)
    token_mask, write_mask = random_mask(batch, length, share=0.7), random_mask(batch, length, spec.heads)
    size = 1.0 if spec.normalize else 0.8 / spec.rank**0.5  # with keys longer than 1 a state may grow without bound
    projected = (size * torch.randn(batch, length, spec.columns + 16, generator=g)).to(dtype)
    projected[~token_mask] = torch.nan
    biases = [torch.randn(spec.gates, generator=g).to(device) for _ in range(2)]
    state = torch.randn(batch, spec.heads, spec.rank, spec.rank, generator=g).to(device)
    view = projected.to(device)[..., 16:]
    return view, biases[0], None if spec.coupled else biases[1], state, token_mask.to(device), write_mask.to(device)


def check_gated_scan(
    device: str, length: int, spec: GateSpec, dtype: torch.dtype = torch.float32, masked: bool = True,
    reads_dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    projected, beta, lam, state, token_mask, write_mask = gated_inputs(spec, 2, length, device, dtype)
    masks = (token_mask, write_mask if masked else None)
    reads, final = gated_scan(projected, beta, lam, state, spec, *masks, reads_dtype, form="triton")
    want, end = gated_scan(projected, beta, lam, state, spec, *masks, form="naive")
    assert reads.dtype == reads_dtype and final.dtype == torch.float32
    assert (reads[~token_mask] == 0).all()
    close(reads, want, TOLERANCE[reads_dtype])
    close(final, end, 1e-4)


def exact_gates(
    projected: Tensor, beta_bias: Tensor, lambda_bias: Tensor | None, spec: GateSpec
) -> tuple[Tensor, ...]:  # fmt: skip
    """q, k, v, keep, erase, write as :func:`gates` makes them, in the precision of what is given."""
    q, k, v, *raw = projected.split([*[spec.width] * 3, *[spec.gates] * (1 if spec.coupled else 2)], dim=-1)
    q, k, v = (x.unflatten(-1, (spec.heads, spec.rank)) for x in (q, k, v))
    if spec.normalize:
        q, k = (torch.nn.functional.normalize(x.tanh(), dim=-1) for x in (q, k))

    def gate(x: Tensor, bias: Tensor) -> Tensor:
        return torch.sigmoid(x + bias).unflatten(-1, (spec.heads, -1)).expand(v.shape)

    beta = gate(raw[0], beta_bias)
    keep = torch.ones_like(beta)
    if spec.mode != "no_lambda":
        keep = 1 - beta if lambda_bias is None else gate(raw[1], lambda_bias)
    return q, k, v, keep, keep * beta if spec.mode == "lambda_outside" else beta, beta


def check_gated_gradients(
    device: str, length: int, spec: GateSpec, dtype: torch.dtype = torch.float32, masked: bool = True,
    bias_dtype: torch.dtype = torch.float32, batch: int = 2,
) -> None:  # fmt: skip
    """Outputs and gradients equal float64's through the loop; padding, NaN here, has gradients of zero."""
    projected, beta, lam, state, token_mask, write_mask = gated_inputs(spec, batch, length, device, dtype)
    present = token_mask if masked else torch.ones_like(token_mask)
    if not masked:
        projected, token_mask, write_mask = torch.nan_to_num(projected, nan=0.5), None, None
    lam = None if spec.mode == "no_lambda" else lam
    biases = [x.to(bias_dtype) for x in (beta, lam) if x is not None]

    def exact(projected: Tensor, state: Tensor, beta: Tensor, lam: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, *tokens = exact_gates(torch.where(present.cpu()[..., None], projected, 0.0), beta, lam, spec)
        q = torch.where(present.cpu()[..., None, None], q, 0.0)
        mask = None if write_mask is None else (write_mask & present[..., None]).cpu()
        return naive_delta_scan(q, *tokens, state, mask)

    def fused(projected: Tensor, state: Tensor, beta: Tensor, lam: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if lam is None and not spec.coupled:
            lam = beta  # of no use without λ
        return gated_scan(projected, beta, lam, state, spec, token_mask, write_mask, form="triton")

    got = gradients(fused, [projected, state, *biases])
    want = gradients(exact, [x.double().cpu() for x in (projected, state, *biases)])
    assert got[0].dtype == got[1].dtype == torch.float32 and got[2].dtype == dtype
    assert (got[2][~present] == 0).all() and (got[0][~present] == 0).all()
    dtypes = [torch.float32, torch.float32, dtype, torch.float32, *[bias_dtype] * len(biases)]
    for a, b, rounded in zip(got, want, dtypes, strict=True):
        close(a, b.to(rounded), TOLERANCE[rounded])  # a sum over 65,504 is infinite in float16


def check_chunk_of_all_tokens(device: str, length: int, spec: GateSpec, batch: int) -> None:
    """Gradients are as exact in one chunk, which is taken where many states fill the device by themselves."""
    from deltamem_agents.ops import triton_scan

    assert triton_scan.training_chunk(1024, 512, 32) == 1024 and triton_scan.training_chunk(1024, 128, 32) == 64
    assert triton_scan.training_chunk(length, batch * spec.heads, spec.rank) < length
    with patch.object(triton_scan, "WALK", 0):
        assert length <= triton_scan.training_chunk(length, batch * spec.heads, spec.rank) < length + 8
        for masked in (True, False):
            check_gated_gradients(device, length, spec, torch.float32, masked, batch=batch)


def check_partial_gradients(device: str, length: int) -> None:
    """Reads without gradients, or states without: zeros; the same bits again; inputs that need none get none."""
    spec = GateSpec(2, 4)
    projected, beta, _, state, token_mask, write_mask = gated_inputs(spec, 3, length, device, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (projected, beta, state)]

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return gated_scan(leaves[0], leaves[1], None, leaves[2], spec, token_mask, write_mask, form="triton")

    whole = torch.autograd.grad(sum(x.sin().sum() for x in run(*leaves)), leaves)
    again = torch.autograd.grad(sum(x.sin().sum() for x in run(*leaves)), leaves)
    parts = [torch.autograd.grad(run(*leaves)[n].sin().sum(), leaves) for n in range(2)]
    for a, b, first, second in zip(whole, again, *parts, strict=True):
        assert torch.equal(a, b)
        close(first + second, a, 1e-5)
    (alone,) = torch.autograd.grad(sum(x.sin().sum() for x in run(projected, beta, leaves[2])), leaves[2])
    assert torch.equal(alone, whole[2])


def check_gated_read(device: str, spec: GateSpec, hidden: int, dtype: torch.dtype = torch.float32) -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, hidden, generator=g).to(dtype)
    token_mask = random_mask(2, 3)
    x[~token_mask] = torch.nan
    weight = (torch.randn(spec.width, hidden, generator=g) / hidden**0.5).to(dtype)
    state = torch.randn(2, spec.heads, spec.rank, spec.rank, generator=g)
    want = gated_read(x.double(), weight.double(), state, spec, token_mask, form="torch")
    x, weight, state, token_mask = (t.to(device) for t in (x, weight, state, token_mask))
    got = gated_read(x, weight, state, spec, token_mask, form="triton")
    assert (got[~token_mask] == 0).all()
    close(got, want, 1e-4)


def check_correction(
    device: str, rows: int, width: int, rank: int, dtype: torch.dtype, factor: bool = False
) -> None:  # fmt: skip
    """A slice of a wider output is corrected, what stands beside it is not."""
    g = torch.Generator().manual_seed(6)
    whole = torch.randn(2, rows, width + 16, generator=g).to(dtype)
    reads, weight = torch.randn(2, rows, rank, generator=g), torch.randn(width, rank, generator=g).to(dtype)
    want = whole.double()
    want[..., 8:-8] += 2.0 * reads.to(dtype).double() @ weight.double().T
    scale = torch.tensor(2.0, device=device) if factor else 2.0
    whole = whole.to(device)
    beside = whole[..., :8].clone()
    add_correction(whole[..., 8:-8], reads.to(device), weight.to(device), scale, form="triton")
    close(whole, want, {**TOLERANCE, torch.float32: 1e-5}[dtype])
    assert torch.equal(whole[..., :8], beside)


def check_read_correction(
    device: str, batch: int, length: int, spec: GateSpec, hidden: int, width: int, dtype: torch.dtype,
    padded: bool = True,
) -> None:  # fmt: skip
    """Equal to float64 on all tokens; padding, NaN here, gets zeros; a row alone gets what it gets in the batch."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(batch, length, hidden + 16, generator=g).to(dtype)[..., 16:]
    token_mask = random_mask(batch, length, share=0.7) if padded else None
    if token_mask is not None:
        x[~token_mask] = torch.nan
    weight = (torch.randn(spec.width, hidden, generator=g) / hidden**0.5).to(dtype)
    state = torch.randn(batch, spec.heads, spec.rank, spec.rank, generator=g)
    up, scales = torch.randn(width, spec.width, generator=g).to(dtype), torch.randn(width, generator=g)
    want = read_correction(
        x.double(), weight.double(), state, spec, up.double(), scales.double(), token_mask, form="torch"
    )
    x, weight, state, up, scales = (t.to(device) for t in (x, weight, state, up, scales))
    mask = None if token_mask is None else token_mask.to(device)
    got = read_correction(x, weight, state, spec, up, scales, mask, form="triton")
    assert got.dtype == dtype and got.shape == (batch, length, width)
    close(got, want, TOLERANCE[dtype])
    if mask is not None:
        assert (got[~mask] == 0).all()
    row = slice(batch // 2, batch // 2 + 1)
    alone = read_correction(
        x[row, :1], weight, state[row], spec, up, scales, None if mask is None else mask[row, :1], form="triton"
    )
    close(alone, got[row, :1], TOLERANCE[dtype])


def check_same_bits(device: str, batch: int, length: int, rank: int = 8) -> None:
    """Again, and a row alone: the same bits as in the batch; gradients too."""
    *tokens, state = (x.float().to(device) for x in scan_inputs(batch, length, 4, rank))
    outputs = gradients(triton, [*tokens, state], None)
    again = gradients(triton, [*tokens, state], None)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    row = batch // 2
    alone = triton(*(x[row : row + 1] for x in tokens), state[row : row + 1], None)
    assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, outputs[:2], strict=True))
    spec = GateSpec(4, rank)
    projected, beta, _, state, _, _ = gated_inputs(spec, batch, length, device, torch.bfloat16)
    projected = torch.nan_to_num(projected)
    both = gated_scan(projected, beta, None, state, spec, form="triton")
    alone = gated_scan(projected[row : row + 1], beta, None, state[row : row + 1], spec, form="triton")
    assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, both, strict=True))


def check_compiles(device: str, backend: str) -> None:
    """The whole path in one graph; the scan with its gradients in another, alone and with the gates inside."""
    spec, length = GateSpec(2, 4), 20
    projected, beta, _, state, token_mask, write_mask = gated_inputs(spec, 2, length, device, torch.float32)
    x, weight = torch.ones(2, 3, 16, device=device), torch.ones(8, 16, device=device)
    up = torch.ones(24, 8, device=device)

    def inference(projected: Tensor) -> tuple[Tensor, ...]:
        reads, final = gated_scan(projected, beta, None, state, spec, token_mask, write_mask, form="triton")
        out = torch.zeros(2, length, 24, device=device)
        add_correction(out, reads.flatten(2), up, 0.5, form="triton")
        alone = read_correction(x, weight, final, spec, up, up[:, 0], token_mask[:, :3], form="triton")
        return out, final, gated_read(x, weight, final, spec, form="triton"), alone

    with torch.no_grad():
        compiled = torch.compile(inference, fullgraph=True, backend=backend)
        for a, b in zip(compiled(projected), inference(projected), strict=True):
            close(a, b, 1e-5)
    inputs = [x.float().to(device) for x in scan_inputs(2, length, 2, 4)]
    compiled = torch.compile(triton, fullgraph=True, backend=backend)
    for a, b in zip(gradients(compiled, inputs, write_mask), gradients(triton, inputs, write_mask), strict=True):
        close(a, b, 1e-5)

    def training(projected: Tensor, beta: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        masks = token_mask, write_mask
        reads, final = gated_scan(2 * projected, beta, None, state, spec, *masks, form="triton")
        return reads, final, gated_read(x, weight, final, spec, token_mask[:, :3], form="torch")

    leaves = [projected, beta, state, weight]
    compiled = torch.compile(training, fullgraph=True, backend=backend)
    for a, b in zip(gradients(compiled, leaves), gradients(training, leaves), strict=True):
        close(a, b, 1e-5)


def _scan_small() -> None:
    check_scan("cpu", 1, 4, heads=1, batch=1)
    check_scan("cpu", 34, 3, batch=1)
    check_scan("cpu", 65, 2, heads=3)
    check_scan("cpu", 9, 8, masked=False, dtype=torch.float16)
    check_scan("cpu", 3, 16, heads=1, batch=1)
    check_hand_over("cpu", 37, 33)
    check_silent_heads("cpu", 34)
    check_same_bits("cpu", 5, 2, 4)


def _gates_small() -> None:
    for length, mode in ((3, "standard"), (18, "lambda_outside"), (2, "no_lambda"), (17, "no_lambda")):
        for coupled, rankwise, normalize in ((True, True, True), (False, False, False)):
            check_gated_scan("cpu", length, GateSpec(3, 4, mode, coupled, normalize, rankwise), torch.float16)
    check_gated_scan("cpu", 34, GateSpec(1, 5), masked=False, reads_dtype=torch.float16)
    check_silent_heads("cpu", 2)
    check_gated_read("cpu", GateSpec(2, 4), 40)
    check_gated_read("cpu", GateSpec(1, 5, normalize=False), 2600, torch.float16)
    check_correction("cpu", 3, 40, 5, torch.float32)
    check_correction("cpu", 35, 136, 8, torch.float16, factor=True)
    check_compiles("cpu", "aot_eager")


def _training_small() -> None:
    for length, mode in ((1, "no_lambda"), (2, "lambda_outside"), (3, "standard")):
        for coupled, rankwise, normalize in ((True, True, True), (False, False, False), (False, True, True)):
            check_gated_gradients("cpu", length, GateSpec(3, 4, mode, coupled, normalize, rankwise), batch=3)
    check_gated_gradients("cpu", 3, GateSpec(2, 5, "lambda_outside", True, True, False), torch.float16, masked=False)
    check_gated_gradients("cpu", 34, GateSpec(1, 4, coupled=False), torch.float16, bias_dtype=torch.float16, batch=1)
    check_partial_gradients("cpu", 2)
    check_chunk_of_all_tokens("cpu", 37, GateSpec(2, 4), 1)


def _reads_small() -> None:
    check_read_correction("cpu", 1, 3, GateSpec(3, 5), 300, 200, torch.float16)
    check_read_correction("cpu", 1, 1, GateSpec(4, 8), 512, 128, torch.float32, padded=False)
    check_read_correction("cpu", 2, 3, GateSpec(1, 4, normalize=False), 40, 72, torch.float32)
    check_read_correction("cpu", 2, 2, GateSpec(2, 2), 3000, 24, torch.float16)
    check_read_correction("cpu", 5, 14, GateSpec(1, 4), 16, 136, torch.float16)


def _interpret(name: str) -> None:
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:  # numpy 2.4 takes no array of one number for an index
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patched
    torch.set_num_threads(1)
    {"scan": _scan_small, "gates": _gates_small, "training": _training_small, "reads": _reads_small}[name]()


if __name__ == "__main__":
    _interpret(sys.argv[1])
