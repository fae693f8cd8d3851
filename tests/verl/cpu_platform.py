"""A platform for verl on a machine without an accelerator, by verl's own registry: what lets its engine run here."""

import types
from contextlib import nullcontext

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

MODULE = types.SimpleNamespace(
    **{
        "empty_cache": lambda: None,
        "synchronize": lambda *args: None,
        "max_memory_allocated": lambda *args: 0,
        "max_memory_reserved": lambda *args: 0,
        "memory_allocated": lambda *args: 0,
        "memory_reserved": lambda *args: 0,
        "mem_get_info": lambda *args: (0, 0),
        "is_available": lambda: True,
        "current_device": lambda: "cpu",
        "get_device_name": lambda: "CPU",
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = MODULE

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CPU_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return nullcontext()

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "CPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


def register_engine():
    """Let verl's FSDP engine be chosen on a CPU, where verl registers it for CUDA and NPU only."""
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    for backend in ("fsdp", "fsdp2"):
        known = EngineRegistry._engines["language_model"][backend]
        if "cpu" not in known:
            known["cpu"] = FSDPEngineWithLMHead
