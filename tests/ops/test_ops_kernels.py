"""The Triton kernels: on a GPU when asked for (-m gpu), and interpreted on the CPU in small shapes always."""

import os
import subprocess
import sys
from pathlib import Path

import ops_kernel_cases as cases
import pytest
import torch

from deltamem_agents.ops import GateSpec, choose_form, gated_read, gated_scan
from deltamem_agents.ops.device import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
LOW = (torch.float16, torch.bfloat16)


def gpu(test: object) -> object:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skip(test))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["scan", "gates", "training", "reads"])
def test_kernels_interpreted_on_the_cpu(name: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(Path(cases.__file__)), name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
def test_scan_equals_the_loop(length: int, masked: bool) -> None:
    cases.check_scan("cuda", length, rank=8, masked=masked)


@gpu
@pytest.mark.parametrize(
    ("rank", "heads", "batch"), [(4, 1, 1), (5, 3, 2), (16, 8, 1), (32, 2, 3), (8, 8, 3), (1, 2, 2)]
)
def test_scan_takes_any_rank_and_number_of_heads(rank: int, heads: int, batch: int) -> None:
    cases.check_scan("cuda", 100, rank, heads, batch)


@gpu
@pytest.mark.parametrize("dtype", LOW)
def test_scan_takes_low_precision(dtype: torch.dtype) -> None:
    cases.check_scan("cuda", 100, 8, dtype=dtype)


@gpu
def test_scan_of_many_chunks_equals_float64() -> None:
    cases.check_long("cuda")


@gpu
@pytest.mark.parametrize("middle", [1, 31, 32, 150])
def test_state_is_handed_over(middle: int) -> None:
    cases.check_hand_over("cuda", 200, middle)


@gpu
@pytest.mark.parametrize("length", [1, 40, 200])
def test_silent_heads_keep_their_bits(length: int) -> None:
    cases.check_silent_heads("cuda", length)


@gpu
@pytest.mark.parametrize("length", [1, 16, 300])
def test_a_row_has_the_same_bits_again_and_in_any_batch(length: int) -> None:
    cases.check_same_bits("cuda", 64, length)


@gpu
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize(("coupled", "rankwise", "normalize"), [(True, True, True), (False, False, False)])
@pytest.mark.parametrize("length", [1, 5, 100])
def test_gates_inside_the_kernels(length: int, mode: str, coupled: bool, rankwise: bool, normalize: bool) -> None:
    cases.check_gated_scan("cuda", length, GateSpec(4, 8, mode, coupled, normalize, rankwise), torch.bfloat16)


@gpu
@pytest.mark.parametrize("rank", [4, 5, 16, 32])
@pytest.mark.parametrize("length", [2, 70])
def test_gates_inside_the_kernels_at_any_rank(length: int, rank: int) -> None:
    cases.check_gated_scan("cuda", length, GateSpec(3, rank), masked=False, reads_dtype=torch.bfloat16)


@gpu
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("rankwise", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("length", [1, 16, 65, 300])
def test_gradients_through_the_gates(length: int, mode: str, coupled: bool, rankwise: bool, normalize: bool) -> None:
    cases.check_gated_gradients("cuda", length, GateSpec(3, 8, mode, coupled, normalize, rankwise))


@gpu
@pytest.mark.parametrize("rank", [4, 8, 32])
@pytest.mark.parametrize("length", [65, 300])
def test_gradients_in_one_chunk(length: int, rank: int) -> None:
    cases.check_chunk_of_all_tokens("cuda", length, GateSpec(3, rank), 2)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("rank", [4, 5, 16, 32])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_through_the_gates_at_any_rank(masked: bool, rank: int, dtype: torch.dtype) -> None:
    for spec in (GateSpec(4, rank), GateSpec(1, rank, "lambda_outside", False, False, False)):
        cases.check_gated_gradients("cuda", 65, spec, dtype, masked, dtype, batch=5)


@gpu
@pytest.mark.parametrize("length", [1, 16, 300])
def test_gradients_of_reads_or_of_states_alone(length: int) -> None:
    cases.check_partial_gradients("cuda", length)


@gpu
@pytest.mark.parametrize(
    ("heads", "rank", "hidden"), [(1, 8, 2560), (4, 8, 1000), (2, 5, 77), (1, 32, 4096), (3, 4, 64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_alone(heads: int, rank: int, hidden: int, dtype: torch.dtype) -> None:
    cases.check_gated_read("cuda", GateSpec(heads, rank), hidden, dtype)
    cases.check_gated_read("cuda", GateSpec(heads, rank, normalize=False), hidden, dtype)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize(
    ("rows", "width", "rank"), [(1, 4096, 8), (1, 1000, 8), (16, 256, 5), (300, 520, 32), (65, 4096, 8)]
)
def test_correction(rows: int, width: int, rank: int, dtype: torch.dtype) -> None:
    cases.check_correction("cuda", rows, width, rank, dtype)
    cases.check_correction("cuda", rows, width, rank, dtype, factor=True)


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("rank", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("heads", [1, 3, 4, 8])
def test_correction_from_reads_alone(heads: int, rank: int, dtype: torch.dtype) -> None:
    for batch, length, padded in ((1, 1, False), (1, 3, True), (64, 1, True), (2, 2, True), (50, 4, True)):
        cases.check_read_correction("cuda", batch, length, GateSpec(heads, rank), 2560, 1000, dtype, padded)
    cases.check_read_correction("cuda", 1, 2, GateSpec(heads, rank, normalize=False), 1000, 6656, dtype)


@gpu
def test_everything_compiles_into_one_graph() -> None:
    cases.check_compiles("cuda", "inductor")


@gpu
def test_the_choice_follows_device_length_and_gradients() -> None:
    """With gradients the kernels are others, and for many tokens torch projects; the results are the same."""
    assert choose_form(torch.zeros(1, 1, 1, 4, device="cuda")) == "triton"
    spec = GateSpec(2, 8)
    projected, beta, _, state, token_mask, write_mask = cases.gated_inputs(spec, 2, 90, "cuda", torch.float32)
    fused = gated_scan(projected, beta, None, state, spec, token_mask, write_mask)
    leaf = projected.clone().requires_grad_()
    apart = gated_scan(leaf, beta, None, state, spec, token_mask, write_mask)
    for a, b in zip(fused, apart, strict=True):
        cases.close(a, b, 1e-4)
    (grad,) = torch.autograd.grad(apart[0].sum() + apart[1].sum(), leaf)
    assert grad.isfinite().all() and (grad[~token_mask] == 0).all()
    x, weight = torch.randn(2, 300, 64, device="cuda"), torch.randn(16, 64, device="cuda")
    few = gated_read(x[:, :9], weight, state, spec)
    cases.close(few, gated_read(x, weight, state, spec)[:, :9], 5e-3)  # cuBLAS may round to TF32
