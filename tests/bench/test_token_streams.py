import msgspec
import pytest
import trio
from flexpipe.bench.token_streams import NoTokensError, TokenReader, TokenStreams


def event(**fields):
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def tokens(*names):
    return event(choices=[{"index": 0, "logprobs": {"tokens": names, "token_logprobs": [-0.5] * len(names)}}])


def test_each_event_is_one_arrival_however_many_tokens_it_brings():
    reader = TokenReader()
    reader.feed(tokens("a") + tokens("b", "c") + b"data: [DONE]\n\n")
    reader.feed(None)
    arrivals = []
    while (came := reader.take()) is not None:
        arrivals.append(came.tokens)
    assert arrivals == [("a",), ("b", "c")]


def test_an_error_frame_comes_after_the_tokens_before_it():
    reader = TokenReader()
    reader.feed(tokens("a") + event(error={"message": "A stage was lost.", "code": "stage_lost"}))
    assert reader.take().tokens == ("a",)
    with pytest.raises(Exception, match=r"A stage was lost\."):
        reader.take()


async def test_a_server_that_is_not_there_is_said_to_have_given_no_tokens():
    streams = TokenStreams("http://127.0.0.1:9", "model", [[1, 2]], tokens_max=4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(streams.run)
        with pytest.raises(NoTokensError, match="before its first token"):
            await streams.begun()
    assert streams.streams[0].lost
