"""DINOv2 as a teacher: from a folder, and the channels that it gets of each sensor."""

import time

import pytest
import torch

from clay_lib import SENSORS, ContractError
from clay_lib.teacher import load_teacher, stand_in_teacher, teacher_view


def test_loads_from_a_local_folder(tmp_path):
    stand_in = stand_in_teacher()
    stand_in.network.save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path), size=56)
    rgb = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(rgb), stand_in(rgb)) and not loaded.stand_in


def test_missing_folder_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ContractError, match="stand_in_teacher"):
        load_teacher(str(tmp_path / "nothing"))


def test_missing_network_is_reported_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    begin = time.monotonic()
    with pytest.raises(ContractError, match="no network"):
        load_teacher("facebook/dinov2-nowhere")
    assert time.monotonic() - begin < 5, "the hub's client alone retries for half a minute"


def test_view_of_sensors():
    s2 = torch.arange(10.0).reshape(1, 10, 1, 1)
    assert teacher_view(s2, SENSORS["sentinel-2-l2a"]).flatten().tolist() == [2, 1, 0]
    radar = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    assert teacher_view(radar, SENSORS["sentinel-1-rtc"]).flatten().tolist() == [1, 3, 2]
