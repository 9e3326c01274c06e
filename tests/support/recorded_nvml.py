"""NVML as it answers on machines that are not here: stands in for the module pynvml, function by function.

The answers are written by hand after NVML's documented structures and constants, and after what `nvidia-smi topo -m` prints
of such machines; nobody recorded them on one.
"""

from types import SimpleNamespace

from pynvml import (
    NVML_ERROR_DRIVER_NOT_LOADED,
    NVML_ERROR_GPU_IS_LOST,
    NVML_ERROR_LIBRARY_NOT_FOUND,
    NVML_ERROR_NOT_SUPPORTED,
    NVML_P2P_CAPS_INDEX_NVLINK,
    NVML_P2P_STATUS_NOT_SUPPORTED,
    NVML_P2P_STATUS_OK,
    NVML_TOPOLOGY_HOSTBRIDGE,
    NVML_TOPOLOGY_NODE,
    NVML_TOPOLOGY_SINGLE,
    NVML_TOPOLOGY_SYSTEM,
    NVMLError,
)

MIB = 1 << 20


class RecordedNvml:
    """Answers from ``gpus``: uuid, name, total, free, busy per cent; an error code in place of an answer is raised.

    ``nvlinks`` are the pairs that NVLink joins; ``ancestor(a, b)`` is where two GPUs meet on PCIe.
    """

    NVMLError = NVMLError

    def __init__(self, gpus, nvlinks=(), ancestor=lambda a, b: NVML_TOPOLOGY_SYSTEM, init_error=None):
        self._gpus = gpus
        self._nvlinks = {frozenset(pair) for pair in nvlinks}
        self._ancestor = ancestor
        self._init_error = init_error
        self.open = 0

    def nvmlInit(self):  # noqa: N802 - these are NVML's names
        if self._init_error is not None:
            raise NVMLError(self._init_error)
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return self._answer(handle, "uuid")

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self._answer(handle, "name")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        total, free = self._answer(handle, "total"), self._answer(handle, "free")
        return SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=self._answer(handle, "busy"), memory=0)

    def nvmlDeviceGetP2PStatus(self, a, b, index):  # noqa: N802
        assert index == NVML_P2P_CAPS_INDEX_NVLINK
        return NVML_P2P_STATUS_OK if frozenset((a, b)) in self._nvlinks else NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetTopologyCommonAncestor(self, a, b):  # noqa: N802
        return self._ancestor(a, b)

    def _answer(self, handle, what):
        assert self.open == 1, "NVML is asked before it is initialised, or after it was shut down"
        answer = self._gpus[handle][what]
        if isinstance(answer, NVMLError):
            raise answer
        return answer


def gpu(index, name, total_mib, free_mib, busy=0):
    uuid = f"GPU-{index:08x}-0000-4000-8000-000000000000"
    return {"uuid": uuid, "name": name, "total": total_mib * MIB, "free": free_mib * MIB, "busy": busy}


def eight_h100_on_nvswitch():
    """A DGX H100, three of whose GPUs other tenants use. Every pair reaches each other over the switches."""
    free = [81008, 81008, 12345, 81008, 40000, 81008, 81008, 512]
    busy = [0, 0, 97, 0, 35, 0, 0, 100]
    gpus = [gpu(at, "NVIDIA H100 80GB HBM3", 81559, free[at], busy[at]) for at in range(8)]
    return RecordedNvml(gpus, [(a, b) for a in range(8) for b in range(a)])


def four_a100_in_bridged_pairs():
    """NVLink bridges join 0 with 1, and 2 with 3; all four hang on one host bridge."""
    gpus = [gpu(at, "NVIDIA A100-PCIE-40GB", 40960, 40338) for at in range(4)]
    return RecordedNvml(gpus, [(0, 1), (2, 3)], lambda a, b: NVML_TOPOLOGY_HOSTBRIDGE)


def four_a10_on_two_sockets():
    """No NVLink. Each socket has a PCIe switch with two GPUs. As older releases of pynvml do, names come in bytes."""
    gpus = [gpu(at, b"NVIDIA A10", 23028, 22515) for at in range(4)]
    return RecordedNvml(gpus, (), lambda a, b: NVML_TOPOLOGY_SINGLE if a // 2 == b // 2 else NVML_TOPOLOGY_SYSTEM)


def two_without_a_switch():
    """Two GPUs on one NUMA node, with nothing between them and the processor."""
    return RecordedNvml([gpu(at, "Tesla T4", 15360, 15102) for at in range(2)], (), lambda a, b: NVML_TOPOLOGY_NODE)


def one_lost_and_one_partitioned():
    """GPU 0 fell off the bus; GPU 1 is cut into MIG instances and does not count its load."""
    lost = {what: NVMLError(NVML_ERROR_GPU_IS_LOST) for what in ("uuid", "name", "total", "free", "busy")}
    partitioned = gpu(1, "NVIDIA A100-SXM4-40GB", 40960, 20000) | {"busy": NVMLError(NVML_ERROR_NOT_SUPPORTED)}
    return RecordedNvml([lost, partitioned])


def no_library():
    return RecordedNvml([], init_error=NVML_ERROR_LIBRARY_NOT_FOUND)


def no_driver():
    return RecordedNvml([], init_error=NVML_ERROR_DRIVER_NOT_LOADED)
