"""What sinfo says about GPUs."""

from __future__ import annotations

import pytest

from erhpc.cluster.observation import count_local_gpus, parse_gres


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)\n", 0),
        ("", 0),
        ("gpu:8\n", 8),
        ("gpu:a100:8(S:0-1)\n", 8),
        ("gpu:h100_80gb_hbm3:4(S:0,1)\n", 4),
        ("(null)\ngpu:v100:2\ngpu:a100:4(S:0-3)\n", 4),
        ("gpu:a100:6(S:0-1),nvme:1\n", 6),
        ("lustre:1,gpu:2\n", 2),
        ("license:99,bandwidth:lustre:400\n", 0),
    ],
)
def test_the_gpus_of_the_best_node_are_read_from_its_gres(text, gpus):
    assert parse_gres(text) == gpus


def test_several_types_of_gpu_on_a_node_are_added():
    assert parse_gres("gpu:a100:4(S:0),gpu:a30:2(S:1)\n") == 6


def test_the_parts_of_a_split_gpu_are_those_the_scheduler_hands_out():
    assert parse_gres("gpu:1g.10gb:7(S:0)\n") == 7


def test_a_resource_that_only_ends_in_gpu_is_none():
    assert parse_gres("mygpu:3,vgpu:4\n") == 0


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 2), ("0,1", 2), ("1", 1), ("", 0), ("-1", 0), ("0,-1,1", 1), ("NoDevFiles", 0)]
)
def test_only_the_gpus_that_may_be_used_here_are_counted(visible, expected):
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"
    )

    assert count_local_gpus(listing, visible) == expected
