"""Addresses, ports and GPUs of a node."""

from __future__ import annotations

import socket

import pytest

from erhpc.cluster import network
from erhpc.errors import ProcessError
from erhpc.plan.ports import PortMap

UUIDS = "GPU-11111111-aaaa,GPU-22222222-bbbb,GPU-33333333-cccc"
MIG_IDS = "MIG-1c1c1c1c-0000,MIG-2d2d2d2d-0000"


def own_address(**changes):
    facts = {
        "node": "10.0.0.2",
        "shares_machine": False,
        "interface": None,
        "link_address": "10.1.0.2",
        "coordinator_address": "10.1.0.1",
    }
    return network.choose_own_address(**facts | changes)


@pytest.mark.parametrize(
    ("inherited", "gpus", "expected"),
    [
        ("0,1,2,3,4,5,6,7", (4, 5, 6, 7), "4,5,6,7"),
        ("2,3", (0, 1), "2,3"),
        (UUIDS, (1,), "GPU-22222222-bbbb"),
        (MIG_IDS, (1, 0), "MIG-2d2d2d2d-0000,MIG-1c1c1c1c-0000"),
        ("0,1", (), ""),
        (None, (), ""),
    ],
)
def test_a_process_sees_its_share_of_the_devices_the_job_was_given(inherited, gpus, expected):
    assert network.slice_devices(inherited, gpus) == expected


@pytest.mark.parametrize("inherited", ["0,1", "", None])
def test_a_plan_that_uses_more_gpus_than_the_job_was_given_is_refused(inherited):
    with pytest.raises(ProcessError, match=r"uses GPU 3 of this node and the job was given [02] "):
        network.slice_devices(inherited, (2, 3))


def test_the_nodes_are_added_to_what_a_site_exempts_from_its_proxy():
    environment = {"NO_PROXY": "intranet.example,,localhost", "https_proxy": "http://proxy:3128"}

    extended = network.extend_no_proxy(environment, ["10.0.0.1", "10.0.0.2"])

    assert extended == dict.fromkeys(("NO_PROXY", "no_proxy"), "intranet.example,localhost,127.0.0.1,10.0.0.1,10.0.0.2")


@pytest.mark.parametrize("environment", [{}, {"no_proxy": ""}, {"NO_PROXY": "", "no_proxy": "localhost"}])
def test_no_proxy_is_set_in_both_spellings_where_neither_says_anything(environment):
    assert network.extend_no_proxy(environment, []) == {
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
    }


@pytest.mark.parametrize(
    ("hostnames", "expected"),
    [
        (["10.0.0.1"], "127.0.0.1"),
        (["127.0.1.1", "127.0.1.2"], "127.0.1.1"),
        (["10.0.0.1", "10.0.0.2"], "0.0.0.0"),
        (["127.0.1.1", "10.0.0.2"], "0.0.0.0"),
    ],
)
def test_rank_0_listens_no_wider_than_its_nodes_need(hostnames, expected):
    assert network.choose_listen_address(hostnames) == expected


def test_a_single_node_stays_on_loopback():
    assert own_address(shares_machine=True, interface="lo") == "127.0.0.1"


def test_a_configured_interface_wins_over_the_name_of_the_node():
    assert own_address(interface="lo") == "127.0.0.1"


def test_a_node_is_reached_by_what_its_name_means():
    assert own_address() == "10.0.0.2"


def test_a_name_that_means_loopback_gives_way_to_the_address_that_reaches_rank_0():
    assert own_address(node="127.0.1.1") == "10.1.0.2"


def test_nodes_that_are_all_this_machine_keep_their_loopback_addresses():
    assert own_address(node="127.0.1.2", coordinator_address="127.0.1.1", link_address="127.0.0.1") == "127.0.1.2"


def test_an_unknown_interface_is_refused_with_those_that_are_there():
    with pytest.raises(ProcessError, match=r"cluster\.interface='ib9' has no IPv4 address on .* Present: .*lo"):
        network.read_interface_address("ib9")


def test_a_band_with_one_taken_port_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        ports = PortMap(first=taken - 5, last=taken + 6, width=4)

        free = network.find_free_bands(ports, [0, 1, 2], "127.0.0.1")

    # The stranger has the second port of band 1.
    assert 1 not in free
    assert set(free) <= {0, 2}


def test_the_rendezvous_port_of_a_band_may_be_taken_for_it_is_ours():
    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        first = rendezvous.getsockname()[1]

        assert network.find_free_bands(PortMap(first, first, 1), [0], "127.0.0.1") == [0]


def test_a_port_taken_on_one_address_is_free_on_another():
    with socket.create_server(("127.0.1.1", 0)) as stranger:
        port = stranger.getsockname()[1]

        assert not network.is_free("127.0.1.1", port)
        assert network.is_free("127.0.1.2", port)
