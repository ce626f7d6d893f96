import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serve.textstream import TextStream


def decode(ids):
    """Ids are bytes, as under a byte-level vocabulary."""
    return bytes(ids).decode("utf-8", errors="replace")


def feed(text, *, stop=(), forbidden=(), step=1):
    stream = TextStream(decode, stop=stop, forbidden=forbidden)
    data = text.encode()
    pieces = [stream.push(data[start : start + step]) for start in range(0, len(data), step)]
    return stream, [*pieces, stream.finish()]


@given(st.text(max_size=40), st.integers(1, 5))
def test_the_pieces_make_up_the_text_whatever_the_tokens_cut(text, step):
    stream, pieces = feed(text, step=step)
    assert "".join(pieces) == text == stream.text


@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3),
    st.integers(1, 4),
)
def test_nothing_of_a_stop_string_or_behind_it_is_sent(text, stops, step):
    stream, pieces = feed(text, stop=stops, step=step)
    places = [text.find(stop) for stop in stops if stop in text]
    # a step may bring several stop strings at once; the first place counts among those that came so far
    assert "".join(pieces) == stream.text
    assert text.startswith(stream.text)
    assert stream.stopped == bool(places)
    for stop in stops:
        assert stop not in stream.text


@given(st.text(alphabet="abc", max_size=30), st.text(alphabet="abc", min_size=1, max_size=4), st.integers(1, 4))
def test_no_forbidden_string_leaves_even_in_part_once_it_is_complete(text, forbidden, step):
    stream, pieces = feed(text, forbidden=(forbidden,), step=step)
    sent = "".join(pieces)
    assert (stream.forbidden_hit is not None) == (forbidden in text)
    assert forbidden not in sent
    if forbidden in text:
        assert text[: text.find(forbidden)].startswith(sent)
    else:
        assert sent == text


def test_half_a_character_waits_for_its_other_bytes():
    stream = TextStream(decode, stop=(), forbidden=())
    first, second = "é".encode()
    assert stream.push((first,)) == ""
    assert stream.push((second,)) == "é"


@pytest.mark.parametrize("behind", ["x", "END"])
def test_a_stop_string_hides_a_forbidden_one_behind_it_only(behind):
    stream, pieces = feed("okENDsecret", stop=("END",), forbidden=("secret",))
    assert "".join(pieces) == "ok"
    assert stream.forbidden_hit is None
    stream, _ = feed("secret" + behind, stop=("END",), forbidden=("secret",))
    assert stream.forbidden_hit == "secret"
