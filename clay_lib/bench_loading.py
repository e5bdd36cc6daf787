"""How long weights take to load, and how much memory beyond the model itself: each file in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from clay_lib.contract import ContractError
from clay_lib.convert import convert
from clay_lib.model import ClayConfig, ClayMAE

TEACHER = 304_370_000  # numbers in the teacher that the released file carries along


@dataclass(frozen=True)
class Loaded:
    """What loading a file took, measured in the process that did nothing else."""

    seconds: float  # of load_model alone
    processor: float  # seconds of processor time in it, which a busy machine does not change
    model: int  # bytes of the loaded model's own tensors
    before: int  # bytes resident with Python, torch and this library imported, nothing loaded
    peak: int  # highest resident bytes, the mapped pages of the file among them

    @property
    def over(self) -> int:
        """Bytes of the peak beyond the model's own, Python and torch included."""
        return self.peak - self.model


def load_memory(path: str | Path) -> Loaded:
    """Load a file of weights in a fresh process and tell what that took."""
    command = [sys.executable, "-c", "from clay_lib.bench_loading import _load; _load()", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    if done.returncode:
        raise ContractError(
            "load", found=done.stderr.strip().splitlines()[-1:], expected="a loaded model", cause=f"see {path}"
        )
    return Loaded(**json.loads(done.stdout))


def _load() -> None:
    from clay_lib.checkpoint import load_model

    before, start, busy = peak_resident(), time.perf_counter(), time.process_time()
    model = load_model(sys.argv[1])
    seconds, processor, peak = time.perf_counter() - start, time.process_time() - busy, peak_resident()
    own = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(json.dumps(asdict(Loaded(seconds, processor, own, before, peak))))


def peak_resident() -> int:
    """Bytes. Linux's ru_maxrss of a new process begins with its parent's, so that its own mark is read there."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_released(
    path: str | Path, config: ClayConfig, *, size: str = "", seed: int = 0, teacher: int = TEACHER
) -> Path:
    """Random weights as the release has them: model and teacher, AdamW's two moments, hyper-parameters; by Lightning.

    size: the name in hyper_parameters; without it there are none. Teacher and moments are zeros that take no memory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {f"model.{name}": tensor for name, tensor in ClayMAE(config).state_dict().items()}
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(t.shape), "exp_avg_sq": torch.zeros(t.shape)}
        for number, t in enumerate(state.values())
    }
    group = {"lr": 5e-6, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05, "params": list(moments)}
    # 24 blocks of equal size stand for the teacher's, whose tensors are left out by name.
    state |= {f"model.teacher.blocks.{i}.weight": torch.zeros(teacher // 24) for i in range(24)}
    content = {
        "epoch": 76,
        "global_step": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": moments, "param_groups": [group]}],
        "lr_schedulers": [{"T_0": 1000, "T_mult": 2, "base_lrs": [1e-5], "last_epoch": 76}],
    }
    if size:
        content |= {"hparams_name": "kwargs", "hyper_parameters": released_settings(size, config)}
    torch.save(content, path)
    return Path(path)


def released_settings(size: str, config: ClayConfig) -> dict:
    """hyper_parameters as in the released file."""
    return {
        "model_size": size,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": False,
        "patch_size": config.patch_size,
        "shuffle": True,
        "metadata_path": "configs/metadata.yaml",
        "teacher": "vit_large_patch14_reg4_dinov2.lvd142m",
        "dolls": [16, 32, 64, 128, 256, 768, 1024],
        "doll_weights": [1, 1, 1, 1, 1, 1, 1],
        "lr": 5e-6,
        "wd": 0.05,
        "b1": 0.9,
        "b2": 0.95,
        "embeddings_level": "mean",
    }


def bench_load(size: str = "large", folder: str = "") -> int:
    """Write random weights as the release has them, load them and print seconds and memory; the files are removed.

    Example: clay bench-load --size base

    Args:
        size: of the model: tiny, small, base or large (7.9 GB of disk in all)
        folder: where to write; the system's folder for temporary files unless named
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=folder or None) as home:
        released = write_released(Path(home) / "released.ckpt", ClayConfig.named(size), size=size)
        rows.append((f"{size}, released .ckpt", released))
        for part in ("whole", "encoder"):
            out = Path(home) / f"{part}.safetensors"
            convert(str(released), str(out), part=part)
            rows.append((f"{size}, {part} .safetensors", out))
        print(
            f"\n{'':<28}{'file':>9}{'seconds':>9}{'processor':>11}{'model':>9}{'peak over it':>14}{'of which before':>17}"
        )
        for what, path in rows:
            took = load_memory(path)
            print(
                f"{what:<28}{path.stat().st_size / 1e9:6.2f} GB{took.seconds:9.1f}{took.processor:11.1f}{took.model / 1e9:6.2f} GB"
                f"{took.over / 1e9:11.2f} GB{took.before / 1e9:14.2f} GB"
            )
    return 0
