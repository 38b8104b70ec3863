"""Qwen3-4B with the published adapter, on a GPU: the same code, another backbone.

python examples/08_qwen3_on_a_gpu.py
python examples/08_qwen3_on_a_gpu.py --adapter ./my-adapter --backbone ./my-backbone --device cpu --decode eager
"""

import argparse
import tempfile
import time
from pathlib import Path

from deltamem_agents import DeltaMemChatModel

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--adapter", default="declare-lab/delta-mem_qwen3_4b-instruct", help="hub id or folder")
options.add_argument("--backbone", default="Qwen/Qwen3-4B-Instruct-2507", help="hub id or folder")
options.add_argument("--device", default="cuda")
options.add_argument("--decode", default="compile", help="compile, graph or eager")
args = options.parse_args()

with tempfile.TemporaryDirectory() as folder:
    model = DeltaMemChatModel(
        adapter=args.adapter,
        backbone=args.backbone,
        device=args.device,
        decode=args.decode,
        store=str(Path(folder) / "memory.db"),
        agent_id="otto",
        max_tokens=64,
    )
    print("states:", dict(model.engine.memory.config.sub_states), "on", model.engine.device)
    for text in ("My daughter Lena plays the cello.", "She has a concert on Friday.", "Who plays the cello?"):
        start = time.perf_counter()
        reply = model.invoke(text)
        took = time.perf_counter() - start
        usage = reply.usage_metadata
        print(f"> {text}\n{reply.text}")
        print(f"  {usage['input_tokens']} tokens in, {usage['output_tokens']} out, {took:.2f} s with the write")
