"""What a container allows, read from control-group files as the kernel writes them; and ports."""

import socket

import psutil
import pytest

from workshop.contracts.errors import StartError
from workshop.machine import available_memory, bound_socket, listen

MB = 2**20
V2 = {"memory.max": 600 * MB, "memory.current": 500 * MB, "memory.stat": f"anon 1\ninactive_file {100 * MB}"}
V1 = {
    "memory/memory.limit_in_bytes": 600 * MB,
    "memory/memory.usage_in_bytes": 500 * MB,
    "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MB}",
}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{content}\n")


@pytest.mark.parametrize("files", [V2, V1], ids=["version 2", "version 1"])
def test_a_containers_limit_counts_and_its_page_cache_does_not(tmp_path, files):
    write(tmp_path, files)
    assert available_memory(tmp_path) == 200 * MB


@pytest.mark.parametrize("files", [{}, V2 | {"memory.max": "max"}], ids=["no group", "no limit"])
def test_without_a_limit_it_is_the_machines_memory(tmp_path, files):
    write(tmp_path, files)
    assert available_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_port_is_held_without_letting_clients_in():
    with bound_socket("127.0.0.1", 0) as bound:
        address = bound.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        listen(bound)
        socket.create_connection(address).close()
        with pytest.raises(StartError, match=f"127.0.0.1:{address[1]}: Address already in use; try --port 0"):
            bound_socket(*address)


def test_when_two_sockets_are_bound_to_a_port_the_second_to_listen_fails():
    with bound_socket("127.0.0.1", 0) as first:
        try:
            second = bound_socket(*first.getsockname())
        except StartError:
            return  # this system does not let two sockets bind it
        with second:
            listen(first)
            with pytest.raises(StartError, match="Address already in use"):
                listen(second)
