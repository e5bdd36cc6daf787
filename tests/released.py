"""Checkpoints in the release's format, with random weights."""

from pathlib import Path

import torch

from clay_lib import ClayConfig, ClayMAE

TEACHER_WEIGHTS = 304_370_000  # numbers in the teacher that the released file contains


def write_released(
    path: str | Path, config: ClayConfig, *, size: str = "", seed: int = 0, teacher: int = TEACHER_WEIGHTS
) -> Path:
    """Random weights in the release's format: model and teacher, AdamW's two moments, hyper-parameters.

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
