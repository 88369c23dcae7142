import asyncio
from types import SimpleNamespace

import pytest
import zmq
from matplotlib.figure import Figure
from zmq.eventloop.zmqstream import ZMQStream

from helpers.panels import LayerExplorer, message_waits


def test_each_layer_is_drawn_once():
    drawn = []

    def draw(layer):
        drawn.append(layer)
        figure = Figure()
        figure.suptitle(f"layer {layer}")
        return figure

    panel = LayerExplorer(draw, 5)
    pictures = {2: panel.image.value}
    for layer in (3, 0, 2, 3, 0):
        panel.layer_slider.value = layer
        assert panel.layer.value == layer
        assert pictures.setdefault(layer, panel.image.value) == panel.image.value
    panel.layer.value = 99
    assert panel.layer_slider.value == 4
    assert drawn == [2, 3, 0, 4]
    assert len(set(pictures.values())) == 3 and panel.image.value not in pictures.values()


def with_subshells(stream):
    """A kernel as of ipykernel 7: a thread beside that of the cells hands on what comes."""
    pair = SimpleNamespace(to_stream=stream)
    pairs = {None: pair}  # None: to the thread of the cells
    manager = SimpleNamespace(get_shell_channel_to_subshell_pair=pairs.__getitem__)
    other = SimpleNamespace(flush=lambda flag: pytest.fail("the stream of another thread"))
    return SimpleNamespace(
        shell_channel_thread=SimpleNamespace(manager=manager), shell_stream=other
    )


def without_subshells(stream):
    return SimpleNamespace(shell_channel_thread=None, shell_stream=stream)


@pytest.mark.parametrize("kernel_of", [with_subshells, without_subshells])
def test_a_message_that_waits_is_seen_once_and_handled_in_its_turn(kernel_of):
    context, handled = zmq.Context(), []
    sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sender.bind("inproc://waits")
    receiver.connect("inproc://waits")

    async def handle(message):
        handled.append(message)

    async def story():
        stream = ZMQStream(receiver)
        stream.on_recv(handle)
        kernel = kernel_of(stream)
        assert not message_waits(kernel)
        sender.send(b"first")
        sender.send(b"second")
        assert message_waits(kernel) and not handled
        assert not message_waits(kernel) and not handled
        sender.send(b"third")  # while those are not handled yet
        for _ in range(100):
            await asyncio.sleep(0.01)
        assert handled == [[b"first"], [b"second"], [b"third"]]
        assert not message_waits(kernel)
        stream.close()

    asyncio.run(story())
    sender.close()
    context.term()


def test_a_kernel_of_another_make_is_asked_nothing():
    assert not message_waits(SimpleNamespace())
    assert not message_waits(SimpleNamespace(shell_channel_thread=SimpleNamespace()))
