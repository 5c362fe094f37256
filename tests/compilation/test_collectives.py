"""Collectives found in HLO text: by hand-written programs, and in a compiled one whose bytes can be computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from chameleon_jax.compilation.collectives import read_collectives


def program(body: str, more: str = "") -> str:
    return f"HloModule m\n\n{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("instruction", "kind", "nbytes"),
    [
        # Four devices, 1,024 floats: a quarter of them is there already, or is all that is wanted.
        ("%x = f32[1024]{0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", "all-gather", 3072),
        ("%x = f32[256]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%add", "reduce-scatter", 3072),
        ("%x = f32[1024]{0} all-reduce(%p), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add", "all-reduce", 6144),
        ("%x = f32[1024]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}", "all-to-all", 3072),
        ("%x = f32[8,128]{1,0:T(8,128)S(1)} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
         "collective-permute", 4096),
        # All eight; a tuple; an asynchronous start, whose type holds operands and results.
        ("%x = bf16[1024]{0} all-gather(%p), replica_groups={}, dimensions={0}", "all-gather", 1792),
        ("%x = (f32[1024]{0}, /*index=1*/bf16[2048]{0:T(1024)(2,1)}) all-reduce(%p, %p), replica_groups=[1,8]<=[8]",
         "all-reduce", 14336),
        ("%x = (f32[128]{0}, f32[1024]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]", "all-gather", 3584),
        ("%x = f32[1024]{0} all-reduce-start(%p), replica_groups=[1,8]<=[8]", "all-reduce", 7168),
        ("%x = (bf16[64]{0}, bf16[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
         "source_target_pairs={{0,1}}", "collective-permute", 128),
    ],
)  # fmt: skip
def test_bytes_that_each_device_receives(instruction, kind, nbytes):
    found = read_collectives(program(f"  {instruction}, channel_id=1\n  ROOT %y = f32[8]{{0}} add(%p, %p)"), 8)
    assert [(each.kind, each.nbytes, each.times) for each in found.collectives] == [(kind, nbytes, 1)]


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups={}", ()),
    ],
)
def test_devices_that_work_together(groups, first):
    found = read_collectives(
        program(f"  ROOT %x = f32[8]{{0}} all-reduce(%p), channel_id=3, {groups}, to_apply=%add"), 8
    )
    assert [each.group for each in found.collectives] == [first]


LOOPS = """
%turn (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %r = (s32[], f32[8]) tuple(%i, %g)
}

%outer (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%any, body=%turn, backend_config={"known_trip_count":{"n":"5"}}
}

%all-reduce-scatter.1 (input: f32[8]) -> f32[4] {
  %sum = f32[8]{0} all-reduce(%input), replica_groups={{0,1}}, to_apply=%add
  ROOT %part = f32[4]{0} dynamic-slice(%sum, %i), dynamic_slice_sizes={4}
}

%counts (t: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%never_tells (t: (s32[], f32[8])) -> pred[] {
  ROOT %done = pred[] get-tuple-element(%t), index=2
}
"""


def test_loops_multiply_and_a_fused_sum_and_slice_is_a_reduce_scatter():
    body = "  ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%counts, body=%outer"
    found = read_collectives(program(body, LOOPS), 8)
    assert {(each.kind, each.nbytes, each.times) for each in found.collectives} == {
        ("all-reduce", 56, 15),
        ("reduce-scatter", 16, 3),
    }
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_is_told_and_counts_as_one_iteration():
    body = "  ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%never_tells, body=%turn"
    found = read_collectives(program(body, LOOPS), 8)
    assert [each.times for each in found.collectives] == [1]
    assert found.unknown_loops == 1


def test_an_asynchronous_call_counts_once():
    wrapped = "%wrapped (p: f32[8]) -> f32[64] {\n  ROOT %g = f32[64]{0} all-gather(%p), replica_groups={}\n}\n"
    body = (
        "  %s = ((f32[8]), f32[64], u32[]) async-start(%p), calls=%wrapped\n"
        "  %u = ((f32[8]), f32[64], u32[]) async-update(%s), calls=%wrapped\n"
        "  ROOT %d = f32[64]{0} async-done(%u), calls=%wrapped"
    )
    (each,) = read_collectives(program(body, wrapped), 8).collectives
    assert (each.kind, each.nbytes, each.times) == ("all-gather", 224, 1)


def test_copies_in_the_fusions_that_a_gather_runs_beside_count_once():
    fused = "".join(
        f"%async_collective_fusion.{number} (p: f32[8]) -> f32[64] {{\n"
        "  ROOT %g = f32[64]{0} all-gather(%p), channel_id=7, replica_groups={}\n}\n\n"
        for number in (1, 2, 3)
    )
    body = (
        "  %async-collective-start = f32[64] fusion(%p), kind=kCustom, calls=%async_collective_fusion.1\n"
        "  %f = f32[64] fusion(%p), kind=kCustom, calls=%async_collective_fusion.2\n"
        "  ROOT %async-collective-done = f32[64]{0} fusion(%f), kind=kCustom, calls=%async_collective_fusion.3"
    )
    (each,) = read_collectives(program(body, fused), 8).collectives
    assert (each.kind, each.nbytes, each.times) == ("all-gather", 224, 1)


def test_a_compiled_scan_moves_what_arithmetic_says():
    """Five layers, each a product with a matrix that is cut over all devices."""
    layers, rows, width = 5, 16, 32
    mesh = jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,))
    cut, whole = (NamedSharding(mesh, spec) for spec in (P(None, "fsdp", None), P()))

    def apply(weights, x):
        def layer(x, weight):
            return x @ jax.lax.with_sharding_constraint(weight, whole), None

        return jax.lax.scan(layer, x, weights)[0]

    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=whole)
    text = jax.jit(apply, out_shardings=whole).lower(weights, x).compile().as_text()
    found = [each for each in read_collectives(text, 8).collectives if each.nbytes]
    assert {(each.kind, each.dtype) for each in found} == {("all-gather", "f32")}
    assert sum(each.nbytes * each.times for each in found) == layers * width * width * 4 * 7 // 8
    assert all(len(each.group) == 8 for each in found)
