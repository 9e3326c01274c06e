"""Hidden states over a link: small ones in the message, large ones through shared memory between real sockets."""

from contextlib import asynccontextmanager

import numpy as np
import pytest
from flexpipe.actors.activation_link import RING_BYTES_MIN, RING_SLOTS, ActivationReceiver, ActivationSender
from flexpipe.actors.link_place import LinkPlace, Surroundings
from flexpipe.actors.messages import ACTIVATION, Activation
from flexpipe.runtime.interface import BufferView
from flexpipe.transport.interface import FrameError
from flexpipe.transport.memory import MemoryNetwork
from flexpipe.transport.zmq_link import ZmqTransport

WIDTH = 1024
TOKENS_MAX = 512


def hidden(tokens, seed):
    values = np.random.default_rng(seed).standard_normal((1, tokens, WIDTH)).astype(np.float32)
    return BufferView("float32", values.shape, values.data)


@asynccontextmanager
async def link(kind, folder):
    network = MemoryNetwork(1)
    in_memory = kind == "memory"
    opening = [network.open("left"), network.open("right")] if in_memory else [ZmqTransport.open() for _ in range(2)]
    address = "memory://hidden" if kind == "memory" else f"ipc://{folder}/hidden"
    async with opening[0] as left, opening[1] as right:
        receiver = await ActivationReceiver.bind(Surroundings(left), LinkPlace(address), name="upstream")
        sender = await ActivationSender.connect(
            Surroundings(right), LinkPlace(address), name="downstream", step_tokens_max=TOKENS_MAX
        )
        yield sender, receiver
        sender.close()
        receiver.close()


@pytest.mark.parametrize("kind", ["memory", "ipc"])
@pytest.mark.parametrize("tokens", [1, TOKENS_MAX])
async def test_a_hidden_state_arrives_as_it_was_sent(tmp_path, kind, tokens):
    async with link(kind, tmp_path) as (sender, receiver):
        for step in range(2 * RING_SLOTS):
            sent = hidden(tokens, step)
            await sender.send(3, step, sent)
            arrived = await receiver.receive()
            assert (arrived.header.epoch, arrived.header.step, arrived.header.shape) == (3, step, sent.shape)
            assert arrived.hidden.data.tobytes() == sent.data.tobytes()
            assert (arrived.header.slot >= 0) == (kind == "ipc" and sent.data.nbytes >= RING_BYTES_MIN)
            receiver.release(arrived.header.slot)


@pytest.mark.parametrize("header", [Activation(1, 0, "float32", (1, 2, 8)), Activation(1, 0, "complex", (1, 1, 8))])
async def test_a_hidden_state_whose_bytes_and_shape_disagree_is_refused(tmp_path, header):
    async with link("memory", tmp_path) as (sender, receiver):
        await sender._bulk.link.send([ACTIVATION.encode(header), b"x" * 32])
        with pytest.raises(FrameError):
            await receiver.receive()
