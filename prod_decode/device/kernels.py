"""The Triton kernel of `device.py`. Importing this imports triton; `device.py` does so only where it runs.

It does what `matcher.py` does on the host, with four differences that a GPU asks for.

*No stack.* Triton has no local arrays, and a stack in memory would need a barrier after every push. Tokens are sorted,
so the descent needs only a cursor instead: the first token, in that order, that has not been decided. It begins at the
pair of roots, follows the first pair of equal children below which a token at or after the cursor is, and when a pair
has none left, moves the cursor behind it and begins again. A path has as many nodes as a token has symbols, so a new
beginning costs no more than writing what was found.

*Lists.* A program waits for memory several times for each pair that it visits. So nodes have their tokens listed
beforehand (`device._list_tokens`): all of them where the blocklist is not large, else those that would take longest.

*Children in lanes.* A node's children are a contiguous range sorted by label. A lane takes one of them and finds its
partner in the other trie by bisection, so that a pair costs about the same with one child and with thirty.

*One warp a row.* All its lanes read a value at once. Of two warps one could read what a slot remembered before the
other's row wrote it, and one after, and they would part ways. Rows of a slot may: both values lead to the same state.
"""

# The language of the kernels is not Python's: its operations on scalars and blocks have no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from prod_decode.match import automaton
from prod_decode.text import normalize
from prod_decode.tokens import vocabulary

_ACCEPT = tl.constexpr(automaton.ACCEPT)
_ACCEPT_END = tl.constexpr(automaton.ACCEPT_END)
_BOUND_ROOT = tl.constexpr(automaton.BOUND_ROOT)
_AFTER_OTHER = tl.constexpr(normalize.AFTER_OTHER)
_AFTER_WORD = tl.constexpr(normalize.AFTER_WORD)
_AFTER_BREAK = tl.constexpr(normalize.AFTER_BREAK)
_WORD = tl.constexpr(normalize.WORD)
_OTHER = tl.constexpr(normalize.OTHER)
_UNKNOWN = tl.constexpr(vocabulary.UNKNOWN)

# What is found for a row: `length << STATE_BITS | state`, or one of the two below.
STATE_BITS, UNREADABLE, NOT_OURS = 33, -1, -2
_STATE_BITS = tl.constexpr(STATE_BITS)
_STATE_MASK = tl.constexpr((1 << STATE_BITS) - 1)
_UNREADABLE = tl.constexpr(UNREADABLE)
_NOT_OURS = tl.constexpr(NOT_OURS)

# So many tokens below an accepting child, or fewer, are masked for all lanes together, more for each child in turn.
_SHORT = tl.constexpr(4)

# Larger than any node.
_NO_NODE = tl.constexpr(1 << 40)

# Lanes of a warp, for children; tokens written at once. On an H200, where much is visited, 16 lanes took 2 % longer and
# 64 took 14 %; blocks of 256 and of 1,024 took as long. (Seen with two kernels and short lists, before this one.)
LANES, BLOCK = 32, 512

# Callers pass slices, so addresses are not always multiples of 16 and strides may be anything. Specialised, each new
# combination would compile a kernel in the middle of serving.
_SLICES = ["logits", "slots", "drafts", "positions", "input_ids", "token_ids", "lengths", "enabled", "prompts"]


@triton.jit
def _child(nodes, low, high, label, lanes: tl.constexpr):
    """`automaton.find_child`, given the range of the children."""
    found = low * 0 - 1
    while (low < high) & (found < 0):
        at = low + tl.arange(0, lanes)
        about = tl.load(nodes + 3 * at + 2, mask=at < high, other=0)
        found = tl.max(tl.where((at < high) & ((about & 255) == label), at, -1), axis=0)
        low += lanes
    return found


@triton.jit
def _step(nodes, rows, row_count, node, symbol, begins_word, lanes: tl.constexpr):
    """`automaton.step`; `begins_word` is 0 or 1."""
    found = node * 0 - 1
    while (node >= row_count) & (found < 0):
        low = tl.load(nodes + 3 * node).to(tl.int64)
        high = tl.load(nodes + 3 * node + 3).to(tl.int64)
        found = _child(nodes, low, high, symbol, lanes)
        node = tl.where(found < 0, tl.load(nodes + 3 * node + 1).to(tl.int64), node)
    dense = tl.load(rows + node * 256 + symbol, mask=found < 0, other=0).to(tl.int64)
    anew = (found < 0) & (dense < row_count) & (begins_word != 0)
    bound = tl.load(rows + _BOUND_ROOT * 256 + symbol, mask=anew, other=0).to(tl.int64)
    return tl.where(found >= 0, found, tl.where(anew, bound, dense))


@triton.jit
def _advance(nodes, rows, row_count, classes, symbols, starts, next_state, size, state, token, lanes: tl.constexpr):
    """`Matcher.advance` for a known token."""
    node = state >> 2
    text_state = state & 3
    at = tl.load(starts + text_state * (size + 1) + token).to(tl.int64)
    end = tl.load(starts + text_state * (size + 1) + token + 1).to(tl.int64)
    in_word = (text_state == _AFTER_WORD).to(tl.int64)
    while at < end:
        symbol = tl.load(symbols + at).to(tl.int64)
        is_word = (tl.load(classes + symbol) == _WORD).to(tl.int64)
        node = _step(nodes, rows, row_count, node, symbol, is_word & (1 - in_word), lanes)
        in_word = is_word
        at += 1
    return (node << 2) | tl.load(next_state + text_state * size + token).to(tl.int64)


@triton.jit
def _is_known(kinds, size, token):
    """0 or 1."""
    inside = (token >= 0) & (token < size)
    kind = tl.load(kinds + token, mask=inside, other=_UNKNOWN)
    return (inside & (kind != _UNKNOWN)).to(tl.int64)


@triton.jit
def _follow(
    row,
    slots,
    drafts,
    positions,
    input_ids,
    token_ids,
    tokens_stride,
    tokens_length,
    lengths,
    enabled,
    prompts,
    bit,
    checkpoints,
    slot_count,
    nodes,
    rows,
    row_count,
    classes,
    symbols,
    starts,
    next_state,
    kinds,
    size,
    longest,
    lanes: tl.constexpr,
):
    """What a row knows of its text; `device._follow` on the host. What does not wait for a read is asked for first."""
    slot = tl.load(slots + row).to(tl.int64)
    draft = tl.load(drafts + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    inside = (slot >= 0) & (slot < slot_count)
    bits = tl.load(enabled + slot, mask=inside, other=0).to(tl.int64)
    length = tl.load(lengths + slot, mask=inside, other=0).to(tl.int64)
    prompt = tl.load(prompts + slot, mask=inside, other=0).to(tl.int64)
    checkpoint = tl.load(checkpoints + slot, mask=inside, other=0)
    result = row * 0 + _NOT_OURS
    if ((bits >> bit) & 1) != 0:
        length = tl.minimum(length, position - draft + 1)
        length = tl.maximum(length, 0)
        known = ((length <= tokens_length) & (draft >= 0) & (draft <= row)).to(tl.int64)

        checkpoint = tl.where((checkpoint >> _STATE_BITS) > length, 0, checkpoint)
        covered = checkpoint >> _STATE_BITS
        history = token_ids + slot * tokens_stride
        first = length
        seen = row * 0
        while (first > covered) & (seen <= longest) & (known == 1):
            first -= 1
            token = tl.load(history + first).to(tl.int64)
            known = _is_known(kinds, size, token)
            token = token * known
            fewest = starts + _AFTER_OTHER * (size + 1) + token
            seen += (tl.load(fewest + 1) - tl.load(fewest)).to(tl.int64)
        state = tl.where(first == covered, checkpoint & _STATE_MASK, 0)
        first = tl.where(known == 1, first, length)
        while first < length:
            token = tl.load(history + first).to(tl.int64)
            state = _advance(nodes, rows, row_count, classes, symbols, starts, next_state, size, state, token, lanes)
            first += 1
            at_edge = (first == prompt) & ((state & 3) == _AFTER_WORD)
            state += tl.where(at_edge, _AFTER_BREAK - _AFTER_WORD, 0)
        at = row - draft + 1
        while (at <= row) & (known == 1):
            token = tl.load(input_ids + at).to(tl.int64)
            same_slot = (tl.load(slots + at).to(tl.int64) == slot).to(tl.int64)
            known = _is_known(kinds, size, token) * same_slot
            if known == 1:
                state = _advance(
                    nodes, rows, row_count, classes, symbols, starts, next_state, size, state, token, lanes
                )
            at += 1
        result = tl.where(known == 1, (length << _STATE_BITS) | state, _UNREADABLE)
    return result


@triton.jit
def _mask_tokens(scores, width, tokens, low, high, block: tl.constexpr):
    """Set the scores of `tokens[low:high]` to -inf."""
    while low < high:
        at = low + tl.arange(0, block)
        token = tl.load(tokens + at, mask=at < high, other=0).to(tl.int64)
        tl.store(scores + token, float("-inf"), mask=(at < high) & (token < width))
        low += block


@triton.jit
def _mask_word_ends(scores, width, order, low, high, depth, classes, symbols, starts, block: tl.constexpr):
    """Of `order[low:high]`, which share their first `depth` symbols, mask those whose word ends there."""
    while low < high:
        at = low + tl.arange(0, block)
        inside = at < high
        token = tl.load(order + at, mask=inside, other=0).to(tl.int64)
        place = tl.load(starts + token, mask=inside, other=0).to(tl.int64) + depth
        end = tl.load(starts + token + 1, mask=inside, other=0).to(tl.int64)
        goes_on = inside & (place < end)
        symbol = tl.load(symbols + place, mask=goes_on, other=0).to(tl.int64)
        kind = tl.load(classes + symbol, mask=goes_on, other=_OTHER)
        tl.store(scores + token, float("-inf"), mask=inside & (kind != _WORD) & (token < width))
        low += block


@triton.jit
def _mask_continuations(
    scores,
    width,
    node,
    root,
    nodes,
    token_nodes,
    order,
    classes,
    symbols,
    starts,
    lanes: tl.constexpr,
    block: tl.constexpr,
):
    """Mask the tokens that complete a pattern under way at `node`, its failure chain left aside."""
    here = node
    there = root
    depth = node * 0
    cursor = tl.load(token_nodes + 4 * root + 1).to(tl.int64)
    walking = node * 0 + 1
    while walking == 1:
        mine = tl.load(nodes + 3 * here).to(tl.int64)
        my_end = tl.load(nodes + 3 * here + 3).to(tl.int64)
        theirs = tl.load(token_nodes + 4 * there).to(tl.int64)
        their_end = tl.load(token_nodes + 4 * there + 4).to(tl.int64)
        pick = node * 0 - 1
        partner = node * 0 - 1
        while (mine < my_end) & (pick < 0):
            v = mine + tl.arange(0, lanes)
            low = v * 0 + theirs
            high = v * 0 + their_end
            paired = (v < my_end) & (low < high)
            about = tl.load(nodes + 3 * v + 2, mask=paired, other=0)
            label = about & 255
            # A node has at most 256 children, which 8 halvings reduce to one.
            for _ in range(8):
                wide = paired & (high - low > 1)
                middle = (low + high) >> 1
                right = (tl.load(token_nodes + 4 * middle + 3, mask=wide, other=0) & 255) <= label
                low = tl.where(wide & right, middle, low)
                high = tl.where(wide & (right == 0), middle, high)
            theirs_about = tl.load(token_nodes + 4 * low + 3, mask=paired, other=0)
            paired = paired & ((theirs_about & 255) == label)
            from_token = tl.load(token_nodes + 4 * low + 1, mask=paired, other=0).to(tl.int64)
            to_token = tl.load(token_nodes + 4 * low + 2, mask=paired, other=0).to(tl.int64)
            flags = (about >> 8) & 255
            short = paired & ((flags & _ACCEPT) != 0) & (to_token - from_token <= _SHORT)
            if tl.max(short.to(tl.int32), axis=0) > 0:
                for i in range(_SHORT):
                    inside = short & (from_token + i < to_token)
                    token = tl.load(order + from_token + i, mask=inside, other=0).to(tl.int64)
                    tl.store(scores + token, float("-inf"), mask=inside & (token < width))
            goes_on = ((about >> 16) & 255) <= ((theirs_about >> 8) & 255)
            ends_first = ((flags & _ACCEPT_END) != 0) & (from_token >= cursor)
            wanted = paired & (short == 0) & (to_token > cursor)
            wanted = wanted & (((flags & _ACCEPT) != 0) | goes_on | ends_first)
            nearest = tl.min(tl.where(wanted, v, _NO_NODE), axis=0)
            partner = tl.max(tl.where(wanted & (v == nearest), low, -1), axis=0)
            pick = tl.where(nearest < _NO_NODE, nearest, -1)
            mine += lanes
        if pick < 0:
            walking = tl.where(there == root, 0, 1).to(tl.int64)
            cursor = tl.load(token_nodes + 4 * there + 2).to(tl.int64)
            here = node
            there = root
            depth = node * 0
        else:
            picked = tl.load(nodes + 3 * pick + 2)
            from_token = tl.load(token_nodes + 4 * partner + 1).to(tl.int64)
            to_token = tl.load(token_nodes + 4 * partner + 2).to(tl.int64)
            height = (tl.load(token_nodes + 4 * partner + 3) >> 8) & 255
            if ((picked >> 8) & _ACCEPT) != 0:
                _mask_tokens(scores, width, order, from_token, to_token, block)
                cursor = to_token
            else:
                if (((picked >> 8) & _ACCEPT_END) != 0) & (from_token >= cursor):
                    _mask_word_ends(
                        scores, width, order, from_token, to_token, depth + 1, classes, symbols, starts, block
                    )
                if ((picked >> 16) & 255) <= height:
                    here = pick
                    there = partner
                    depth += 1
                else:
                    cursor = to_token


@triton.jit(
    do_not_specialize=[
        "logits_stride",
        "width",
        "tokens_stride",
        "tokens_length",
        "bit",
        "slot_count",
        "node_count",
        "row_count",
        "size",
        "longest",
        "end_count",
    ],
    do_not_specialize_on_alignment=_SLICES,
)
def mask(
    logits,
    logits_stride,
    width,
    found,
    slots,
    drafts,
    positions,
    input_ids,
    token_ids,
    tokens_stride,
    tokens_length,
    lengths,
    enabled,
    prompts,
    bit,
    checkpoints,
    slot_count,
    nodes,
    node_count,
    rows,
    row_count,
    classes,
    symbols,
    starts,
    next_state,
    kinds,
    size,
    longest,
    token_nodes,
    roots,
    order,
    fixed,
    fixed_starts,
    list_of,
    list_starts,
    list_tokens,
    ends,
    end_count,
    lanes: tl.constexpr,
    block: tl.constexpr,
):
    """Follow every row's text, mask it, end it if it is dead then, and remember its slot's state; a program a row."""
    row = tl.program_id(0).to(tl.int64)
    checkpoint = _follow(
        row,
        slots,
        drafts,
        positions,
        input_ids,
        token_ids,
        tokens_stride,
        tokens_length,
        lengths,
        enabled,
        prompts,
        bit,
        checkpoints,
        slot_count,
        nodes,
        rows,
        row_count,
        classes,
        symbols,
        starts,
        next_state,
        kinds,
        size,
        longest,
        lanes,
    )
    tl.store(found + row, checkpoint)
    scores = logits + row * logits_stride
    limit = row * 0 + width
    if checkpoint >= 0:
        if tl.load(drafts + row) == 0:
            tl.store(checkpoints + tl.load(slots + row).to(tl.int64), checkpoint)
        state = checkpoint & _STATE_MASK
        text_state = state & 3
        low = tl.load(fixed_starts + text_state).to(tl.int64)
        high = tl.load(fixed_starts + text_state + 1).to(tl.int64)
        _mask_tokens(scores, limit, fixed, low, high, block)
        padding = row * 0 + size
        while padding < limit:
            column = padding + tl.arange(0, block)
            tl.store(scores + column, float("-inf"), mask=column < limit)
            padding += block
        root = tl.load(roots + text_state).to(tl.int64)
        longest_token = (tl.load(token_nodes + 4 * root + 3) >> 8) & 255
        node = state >> 2
        while node > _BOUND_ROOT:
            number = tl.load(list_of + root * node_count + node).to(tl.int64)
            if number >= 0:
                from_token = tl.load(list_starts + number)
                to_token = tl.load(list_starts + number + 1)
                _mask_tokens(scores, limit, list_tokens, from_token, to_token, block)
                # The list has what the rest of the chain completes as well.
                node = node * 0
            else:
                about = tl.load(nodes + 3 * node + 2)
                if ((about >> 16) & 255) <= longest_token:
                    _mask_continuations(
                        scores,
                        limit,
                        node,
                        root,
                        nodes,
                        token_nodes,
                        order,
                        classes,
                        symbols,
                        starts + text_state * (size + 1),
                        lanes,
                        block,
                    )
                node = tl.load(nodes + 3 * node + 1).to(tl.int64)
        # Other threads of the program wrote what this one reads next.
        tl.debug_barrier()
    if checkpoint != _NOT_OURS:
        # The first block nearly always has a live score; a row that cannot be read has none that counts.
        at = tl.where(checkpoint >= 0, 0, limit)
        alive = (row * 0).to(tl.int32)
        while (at < limit) & (alive == 0):
            column = at + tl.arange(0, block)
            score = tl.load(scores + column, mask=column < limit, other=float("-inf"))
            # Triton's interpreter keeps bfloat16 as bits, which do not compare; float64 holds every dtype.
            alive = tl.max((score.to(tl.float64) > float("-inf")).to(tl.int32), axis=0)
            at += block
        if alive == 0:
            tl.debug_barrier()
            at = row * 0
            while at < limit:
                column = at + tl.arange(0, block)
                is_end = column < 0
                for i in range(end_count):
                    is_end = is_end | (column == tl.load(ends + i))
                tl.store(scores + column, tl.where(is_end, 0.0, float("-inf")), mask=column < limit)
                at += block
