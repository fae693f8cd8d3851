"""What stands in for NCCL, so that TRL trains beside a real vLLM on a CPU; the rest is TRL's and vLLM's own code.

    trl vllm-serve --model M --worker-extension-cls vllm_on_cpu.Worker

1. TRL sends weights to a server by NCCL, which needs a GPU. Here they travel through vLLM's StatelessProcessGroup, a
   TCP store on the loopback interface: a weight-transfer engine of our own in the server's worker, under the name of
   NCCL's in vLLM's own factory, and two functions of TRL's client.
2. vLLM's CPU layers keep a packed copy of their weights and throw the originals away. TRL's colocate mode writes into
   the originals, so packing is off (`keep_weights`).
"""

from concurrent.futures import ThreadPoolExecutor

from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine


def keep_weights():
    """Let layers multiply with the weights that were loaded, so that new ones can be written into them."""
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *shape: False


class StoreEngine(NCCLWeightTransferEngine):
    """The server's side: as NCCL's, but for how a tensor arrives."""

    def init_transfer_engine(self, init_info):
        address = {"host": init_info.master_address, "port": init_info.master_port}
        self.model_update_group = StatelessProcessGroup.create(**address, rank=1, world_size=2)

    def receive_weights(self, update_info):
        for name in update_info.names:
            self.model.load_weights([(name, self.model_update_group.broadcast(None, src=0))])


WeightTransferEngineFactory._registry["nccl"] = lambda: StoreEngine
keep_weights()


class Worker:
    """Added to the server's worker class: importing it is what counts."""


def send_through_the_store(monkeypatch):
    """Let TRL's client send weights through the store."""
    from trl.generation import vllm_client

    def init_communicator(client, device=0):
        address = {"master_address": "127.0.0.1", "master_port": client.group_port}
        info = address | {"rank_offset": 1, "world_size": client.get_world_size() + 1}
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(
                client._post, f"{client.base_url}/init_weight_transfer_engine", json={"init_info": info}
            )
            client.communicator = StatelessProcessGroup.create("127.0.0.1", client.group_port, rank=0, world_size=2)
            joined.result()

    def send(iterator, group, src, post_iter_func):
        for item in iterator:
            group.broadcast(post_iter_func(item).detach().clone(), src)

    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", init_communicator)
    monkeypatch.setattr(vllm_client, "packed_nccl_broadcast_producer", send)
