import math

import pytest
from flexpipe.actors.gateway.request_machine import Delta, IllegalEventError, RequestMachine
from flexpipe.actors.gateway.stop_strings import StopScanner
from flexpipe.actors.generation import TokenEvent
from flexpipe.runtime.interface import SampledToken
from hypothesis import given
from hypothesis import strategies as st
from toy_language import END, ToyTextStream, ToyTokenizer

ALPHABET = "abé"
TEXTS = st.text(alphabet=ALPHABET, max_size=40)
STOPS = st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=5), max_size=4)


def machine_for(stops=()):
    return RequestMachine(ToyTextStream(), stops, ToyTokenizer().token_text)


def events_of(token_ids, finish="length", logprobs=False):
    last = len(token_ids) - 1
    return [
        TokenEvent(index, sampled(token_id, logprobs), finish if index == last else None)
        for index, token_id in enumerate(token_ids)
    ]


def sampled(token_id, logprobs):
    return SampledToken(token_id, -0.5, ((token_id, -0.5), (END, -2.0))) if logprobs else SampledToken(token_id)


def run(machine, events):
    """Feed events until the machine closes; return its deltas."""
    deltas = []
    for event in events:
        deltas.append(machine.take(event))
        if machine.closed:
            break
    return deltas


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def cut_by_definition(text, stops):
    """The text before the stop string completed first (of several completed at once, the longest), by brute force."""
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            return text[: end - max(map(len, completed))], True
    return text, False


@st.composite
def split_texts(draw):
    """A text and one way of cutting it into pieces (some of them empty)."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(split_texts(), STOPS)
def test_however_text_is_split_the_scanner_cuts_it_at_the_first_stop_string(split, stops):
    text, pieces = split
    scanner, shown = StopScanner(stops), ""
    for piece in pieces:
        shown += scanner.push(piece)
        assert not any(stop in shown for stop in stops)
        if scanner.stopped:
            break
    else:
        shown += scanner.finish()
    assert (shown, scanner.stopped) == cut_by_definition(text, stops)


@given(split_texts(), STOPS)
def test_the_scanner_holds_back_only_what_may_become_a_stop_string(split, stops):
    scanner, shown, taken = StopScanner(stops), "", ""
    for piece in split[1]:
        shown, taken = shown + scanner.push(piece), taken + piece
        if scanner.stopped:
            break
        held = taken[len(shown) :]
        assert taken.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


@given(TEXTS.filter(bool), STOPS, st.booleans())
def test_a_text_of_byte_tokens_comes_out_whole_or_cut_at_the_first_stop_string(text, stops, ends_with_stop_token):
    tokens = [*text.encode(), END] if ends_with_stop_token else list(text.encode())
    finish = "stop" if ends_with_stop_token else "length"
    machine = machine_for(stops)
    deltas = run(machine, events_of(tokens, finish))
    expected, stopped = cut_by_definition(text, stops)
    assert text_of(deltas) == expected
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish == ("stop" if stopped else finish)
    assert machine.closed
    assert machine.completion_tokens == len(deltas)


@given(TEXTS.filter(bool), STOPS)
def test_reports_cover_exactly_the_tokens_of_which_a_character_is_shown(text, stops):
    deltas = run(machine_for(stops), events_of(list(text.encode()), logprobs=True))
    shown = text_of(deltas)
    reports = [report for delta in deltas for report in delta.reports]
    starts = [len(text.encode()[:index].decode(errors="ignore")) for index in range(len(text.encode()))]
    assert [report.text_offset for report in reports] == [start for start in starts if start < len(shown)]


def test_a_stop_string_across_tokens_cancels_the_generation():
    machine = machine_for(["STOP"])
    deltas = run(machine, events_of(list(b"go STOP on")))
    assert text_of(deltas) == "go "
    assert deltas[-1] == Delta("", (), "stop", cancel=True)
    assert machine.completion_tokens == 7


def test_a_stop_string_completed_by_the_last_token_needs_no_cancel():
    deltas = run(machine_for(["ab"]), events_of(list(b"xab")))
    assert deltas[-1] == Delta("", (), "stop", cancel=False)


def test_the_text_of_a_stop_token_is_not_shown_and_it_is_counted():
    machine = machine_for()
    deltas = run(machine, [TokenEvent(0, SampledToken(104)), TokenEvent(1, SampledToken(105, -1.0), "stop")])
    assert text_of(deltas) == "h"
    assert deltas[-1] == Delta("", (), "stop")
    assert machine.completion_tokens == 2


def test_a_held_back_beginning_is_shown_when_the_sequence_ends():
    deltas = run(machine_for(["STOP"]), events_of(list(b"a STO")))
    assert [delta.text for delta in deltas] == ["a", " ", "", "", "STO"]
    assert deltas[-1].finish == "length"


def test_an_incomplete_character_at_the_end_is_shown_as_a_replacement():
    deltas = run(machine_for(), events_of([0x61, 0xC3]))
    assert text_of(deltas) == "a\ufffd"


def test_a_replacement_character_can_complete_a_stop_string():
    deltas = run(machine_for(["\ufffd"]), events_of([0x61, 0xC3]))
    assert text_of(deltas) == "a"
    assert deltas[-1].finish == "stop"


def test_alternatives_are_reported_by_their_text():
    (delta,) = run(machine_for(), events_of([104], logprobs=True))
    (report,) = delta.reports
    assert report.text == "h"
    assert report.top == (("h", -0.5), ("</s>", -2.0))
    assert math.isclose(report.logprob, -0.5)


@pytest.mark.parametrize("index", [1, 5, -1])
def test_a_token_out_of_order_is_illegal_and_changes_nothing(index):
    machine = machine_for()
    with pytest.raises(IllegalEventError):
        machine.take(TokenEvent(index, SampledToken(104)))
    assert machine.completion_tokens == 0
    assert machine.take(TokenEvent(0, SampledToken(104))).text == "h"


def test_a_token_after_the_end_is_illegal():
    machine = machine_for()
    machine.take(TokenEvent(0, SampledToken(104), "length"))
    with pytest.raises(IllegalEventError):
        machine.take(TokenEvent(1, SampledToken(104)))
    assert machine.completion_tokens == 1


def test_a_token_that_comes_twice_is_illegal():
    machine = machine_for()
    machine.take(TokenEvent(0, SampledToken(104)))
    with pytest.raises(IllegalEventError):
        machine.take(TokenEvent(0, SampledToken(104)))


def test_text_after_the_stop_string_is_refused():
    scanner = StopScanner(["a"])
    scanner.push("a")
    with pytest.raises(ValueError, match="after the stop string"):
        scanner.push("b")


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopScanner([""])
