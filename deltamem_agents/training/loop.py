"""What every training run shares: schedule, mixed precision, checkpoints, the log and its plot."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..errors import RecipeError
from .recipe import TrainRecipe

CHECKPOINT = "checkpoint.pt"


class Run:
    """One optimisation in a folder: ``log.jsonl``, ``loss.png``, and ``checkpoint.pt`` to resume from.

    Call :meth:`resume`, then for each step :meth:`update` with the loss; ``finished`` says whether all steps are done.
    ``carried`` are tensors that go from step to step beside the parameters: set them before :meth:`update`.
    """

    def __init__(
        self, folder: Path, train: TrainRecipe, parameters: dict[str, nn.Parameter], deadline: float | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.train, self.parameters, self.deadline = folder, train, parameters, deadline
        self.carried: dict[str, torch.Tensor] = {}
        self.step = 0
        self.seconds = 0.0
        self._started = time.monotonic()
        self._logged = (0, self._started)
        cuda = next(iter(parameters.values())).is_cuda
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=cuda
        )
        self._losses: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        return self.step >= self.train.steps

    def lr(self) -> float:
        """Learning rate of the coming step: linear warm-up, then a cosine to ``final_lr`` of it."""
        t = self.train
        if self.step < t.warmup:
            return t.lr * (self.step + 1) / t.warmup
        done = (self.step - t.warmup) / max(1, t.steps - t.warmup)
        return t.lr * (t.final_lr + (1 - t.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def steps(self, batches: Any) -> Iterator[Any]:
        """Batches until the last step or the deadline, with a progress bar and checkpoints.

        Ctrl-C ends it after the step under way: the checkpoint is written, then KeyboardInterrupt raised.
        """
        bar = tqdm(total=self.train.steps, initial=self.step, unit="step", mininterval=5.0)
        with _deferred_interrupt() as interrupted, bar:
            for batch in batches:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr()
                yield batch
                bar.update()
                if self._logged[0] == self.step:
                    bar.set_postfix(loss=f"{self._last:.4f}")
                if interrupted.is_set() or (self.deadline is not None and time.monotonic() > self.deadline):
                    break
        self.save()
        if interrupted.is_set():
            raise KeyboardInterrupt

    def update(self, loss: torch.Tensor, accuracy: torch.Tensor) -> None:
        """Backward, clip, step; log (loss, and the share of answer tokens that were right) and save when it is time."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), self.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses.append(torch.stack([loss.detach(), accuracy.detach()]))
        self.step += 1
        if self.step % self.train.log_every == 0 or self.finished:
            self._log()
        if self.step % self.train.checkpoint_every == 0:
            self.save()

    def _log(self) -> None:
        self._last, accuracy = torch.stack(self._losses).mean(dim=0).tolist()
        self._losses.clear()
        if not math.isfinite(self._last):
            advice = f"lower lr or raise warmup; see {self.folder}"
            raise RecipeError(f"the loss is {self._last} at step {self.step}: {advice}")
        now = time.monotonic()
        per_step = (now - self._logged[1]) / max(1, self.step - self._logged[0])
        self._logged = (self.step, now)
        entry = {
            "step": self.step,
            "loss": round(self._last, 5),
            "accuracy": round(accuracy, 5),
            "lr": round(self.lr(), 7),
            "ms": round(1e3 * per_step, 1),
            "seconds": round(self.seconds + now - self._started, 1),
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        document = {
            "step": self.step,
            "seconds": self.seconds + time.monotonic() - self._started,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "carried": self.carried,
        }
        part = self.folder / (CHECKPOINT + ".part")
        torch.save(document, part)
        part.replace(self.folder / CHECKPOINT)
        plot(self.folder)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        document = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: value.shape for name, value in document["parameters"].items()}
        if shapes != {name: value.shape for name, value in self.parameters.items()}:
            raise RecipeError(f"{path} belongs to another model or adapter: choose another folder, or delete it")
        with torch.no_grad():
            for name, value in document["parameters"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(document["optimizer"])
        device = next(iter(self.parameters.values())).device
        self.carried = {name: value.to(device) for name, value in document.get("carried", {}).items()}
        self.step, self.seconds = document["step"], document["seconds"]
        self._logged = (self.step, time.monotonic())
        return True


@contextmanager
def _deferred_interrupt() -> Iterator[Event]:
    """Ctrl-C sets the event and no more, so that a step is never cut in two; a second one stops at once."""
    event = Event()
    if current_thread() is not main_thread():  # only the main thread hears signals
        yield event
        return

    def hear(*_: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def precision(train: TrainRecipe, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for "bf16"; weights and states stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if train.dtype == "bf16" else nullcontext()


def token_accuracy(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Share of the ``counted`` positions (N,) bool at which the likeliest token of logits (N, V) is the label."""
    right = (logits.argmax(dim=-1) == labels) & counted
    return right.sum() / counted.sum().clamp(min=1)


def plot(folder: Path) -> None:
    """``loss.png`` from ``log.jsonl``; left out when matplotlib (extra "train") is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    log = folder / "log.jsonl"
    if not log.is_file():
        return
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    axes.plot([e["step"] for e in entries], [e["loss"] for e in entries])
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=110)
