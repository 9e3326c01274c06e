"""Devices by name, and which stage gets which."""

import os

import pytest
from flexpipe.actors.devices import (
    DeviceError,
    StageDevice,
    assign,
    cuda_devices,
    default_devices,
    parse_devices,
    stated_memory,
)


def test_cpu_workers_are_counted_out():
    assert parse_devices("cpu:3") == ("cpu:0", "cpu:1", "cpu:2")
    assert parse_devices("cpu") == ("cpu:0",)


def test_cpu_workers_are_numbered_from_the_first_group_to_the_last():
    assert parse_devices("cpu:2,cpu") == ("cpu:0", "cpu:1", "cpu:2")


def test_a_memory_is_stated_for_each_worker_of_its_group():
    text = "cpu:2x2GiB, cpu:1, cpu:2x512MiB"
    assert parse_devices(text) == ("cpu:0", "cpu:1", "cpu:2", "cpu:3", "cpu:4")
    large, small = 2 << 30, 512 << 20
    assert stated_memory(text) == {"cpu:0": large, "cpu:1": large, "cpu:3": small, "cpu:4": small}
    assert stated_memory(None) == stated_memory("cpu:4") == {}


@pytest.mark.parametrize(
    "text", ["cpu:2x", "cpu:2x0", "cpu:2x-1GiB", "cpu:2xnan", "cpu:2x2GB", "cpux2GiB", "cuda:0x2GiB"]
)
def test_a_memory_that_cannot_be_is_refused(text):
    with pytest.raises(DeviceError, match=text):
        parse_devices(text)


@pytest.mark.parametrize("text", ["gpu:1", "cpu:x", "", "cuda:-1", "cpu:99999"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(DeviceError):
        parse_devices(text)


@pytest.mark.skipif(cuda_devices() > 0, reason="there are GPUs here")
def test_a_gpu_that_does_not_exist_is_named():
    with pytest.raises(DeviceError, match="cuda:0 does not exist; the driver shows 0 GPUs"):
        parse_devices("cuda:0")


def test_too_few_devices_are_refused():
    with pytest.raises(DeviceError, match="3 stages need 3 devices, 2 were given"):
        assign(("cpu:0", "cpu:1"), 3, None)


def test_cores_are_shared_evenly_where_all_stages_have_some():
    cores = sorted(os.sched_getaffinity(0))
    devices = assign(default_devices(len(cores)), len(cores), None)
    assert [device.cores for device in devices] == ([(core,) for core in cores] if len(cores) > 1 else [()])
    more = assign(tuple(f"cpu:{n}" for n in range(len(cores) + 1)), len(cores) + 1, None)
    assert all(device.cores == () and device.threads == 1 for device in more)


def test_asked_for_threads_are_given_and_not_pinned():
    assert assign(("cpu:0",), 1, 5) == (StageDevice("cpu:0", 5),)
