"""Blocks are neither lost nor freed twice, and content that was freed can be found until it is given away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.engine.block_pool import BlockPool, block_key


def hold(pool: BlockPool, *keys: bytes) -> list[int]:
    """Allocate a chain of full blocks with these keys."""
    table = [pool.allocate() for _ in keys]
    for block, key in zip(table, keys, strict=True):
        pool.register(block, key)
    return table


def test_allocates_every_block_once() -> None:
    pool = BlockPool(5, 4)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    with pytest.raises(IndexError):
        pool.allocate()


def test_freed_content_is_found_until_the_block_is_given_away() -> None:
    pool = BlockPool(2, 4)
    table = hold(pool, b"a", b"b")
    pool.release(table)
    assert pool.num_free == 2
    assert [pool.lookup(b"a"), pool.lookup(b"b")] == table
    pool.allocate()
    assert pool.lookup(b"b") is None
    assert pool.lookup(b"a") == table[0]


def test_a_chain_loses_its_tail_first() -> None:
    pool = BlockPool(3, 4)
    table = hold(pool, b"a", b"b", b"c")
    pool.release(table)
    assert [pool.allocate() for _ in range(3)] == table[::-1]


def test_the_chain_that_was_left_alone_longest_goes_first() -> None:
    pool = BlockPool(4, 4)
    old, new = hold(pool, b"a", b"b"), hold(pool, b"c", b"d")
    pool.release(old)
    pool.release(new)
    pool.share(old[0])  # used again: now the newest
    pool.release([old[0]])
    assert [pool.allocate() for _ in range(4)] == [old[1], new[1], new[0], old[0]]


def test_blank_blocks_go_before_cached_ones() -> None:
    pool = BlockPool(2, 4)
    pool.release(hold(pool, b"a"))
    assert pool.allocate() != pool.lookup(b"a")


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    pool = BlockPool(1, 4)
    (block,) = hold(pool, b"a")
    pool.share(block)
    pool.release([block])
    assert pool.num_free == 0
    pool.release([block])
    assert pool.num_free == 1


def test_the_first_block_with_a_content_keeps_the_key() -> None:
    pool = BlockPool(2, 4)
    first, second = hold(pool, b"a", b"a")
    pool.release([second])
    assert pool.lookup(b"a") == first
    assert pool.allocate() == second  # it was a duplicate: nothing worth keeping
    assert pool.lookup(b"a") == first


@given(
    st.tuples(st.binary(max_size=4), st.lists(st.integers(0, 2**31), max_size=4), st.binary(max_size=2)),
    st.tuples(st.binary(max_size=4), st.lists(st.integers(0, 2**31), max_size=4), st.binary(max_size=2)),
)
def test_keys_differ_in_parent_tokens_and_salt(
    one: tuple[bytes, list[int], bytes], other: tuple[bytes, list[int], bytes]
) -> None:
    def key(parts: tuple[bytes, list[int], bytes]) -> bytes:
        parent, tokens, salt = parts
        return block_key(block_key(b"", list(parent)), tokens, salt.rstrip(b"\0"))

    same = (one[0], one[1], one[2].rstrip(b"\0")) == (other[0], other[1], other[2].rstrip(b"\0"))
    assert (key(one) == key(other)) == same


@given(st.data())
def test_holders_and_free_blocks_always_add_up(data: st.DataObject) -> None:
    """Against the plainest model: a list of tables."""
    pool = BlockPool(6, 4)
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(["allocate", "share", "register", "release"]))
        if action == "allocate" and pool.num_free:
            tables.append([pool.allocate()])
        elif action == "share" and (found := pool.lookup(data.draw(st.sampled_from([b"a", b"b", b"c"])))) is not None:
            tables.append([found])
            pool.share(found)
        elif action == "register" and tables:
            block = data.draw(st.sampled_from(tables))[-1]
            pool.register(block, data.draw(st.sampled_from([b"a", b"b", b"c"])))
        elif action == "release" and tables:
            pool.release(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
        held = [block for table in tables for block in table]
        assert [pool.num_holders(block) for block in range(6)] == [held.count(block) for block in range(6)]
        assert pool.num_free == 6 - len(set(held))
