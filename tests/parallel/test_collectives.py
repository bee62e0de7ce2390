"""Collectives are found in HLO texts, hand-made ones and compiled ones."""

import jax
import pytest

from jaxkd.parallel.collectives import Collective, collectives

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"


def one(instruction):
  """The only collective of a program with this instruction."""
  text = (
    f"{HEAD}ENTRY %main (p: f32[4,8]) -> f32[4,8] {{\n"
    "  %p = f32[4,8]{1,0} parameter(0)\n"
    f"  {instruction}\n"
    "}\n"
  )
  (found,) = collectives(text)
  return found


@pytest.mark.parametrize(
  ("instruction", "kind", "group", "size"),
  [
    (
      "ROOT %r.1 = f32[4,8]{1,0} all-reduce(%p), channel_id=1, "
      "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
      *("all-reduce", 4, 128),
    ),
    (
      "%g = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), "
      "replica_groups=[1,8]<=[8], dimensions={0}",
      *("all-gather", 8, 512),
    ),
    (
      "%s = f32[2,8]{1,0} reduce-scatter(%p), "
      "replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}, to_apply=%add",
      *("reduce-scatter", 2, 128),
    ),
    (
      "a = (f32[1,8]{1,0}, /*index=1*/pred[3]{0}) all-to-all(p, q), "
      "replica_groups={}",
      *("all-to-all", 8, 35),
    ),
    (
      "%c = s4[5]{0} collective-permute(%p), source_target_pairs="
      "{{0,1},{1,2},{2,0}}",
      *("collective-permute", 3, 3),
    ),
    (
      "%b = f8e4m3fn[5]{0} collective-broadcast(%p), replica_groups={{0,1}}",
      *("collective-broadcast", 2, 5),
    ),
    (
      "%g = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), "
      "replica_groups={{0,1}}, dimensions={0}",
      *("all-gather", 2, 256),
    ),
    (
      "%g = ((f32[4,8]{1,0}, f32[2]{0}), (f32[8,8]{1,0}, f32[4]{0})) "
      "all-gather-start(%p, %q), replica_groups={{0,1}}, dimensions={0}",
      *("all-gather", 2, 272),
    ),
    (
      "%r = (f32[4,8]{1,0}, f32[2]{0}) all-reduce-start(%p, %q), "
      "replica_groups={{0,1}}, to_apply=%add",
      *("all-reduce", 2, 136),
    ),
    (
      "%c = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start"
      "(%p), source_target_pairs={{0,1}}",
      *("collective-permute", 1, 16),
    ),
    (
      "%s = ((f32[4,8]{1,0}), f32[2,8]{1,0}, s32[]) reduce-scatter-start(%p),"
      " replica_groups={{0,1}}, dimensions={0}, to_apply=%add",
      *("reduce-scatter", 2, 128),
    ),
  ],
)
def test_a_collective_is_read(instruction, kind, group, size):
  assert one(instruction) == Collective(
    kind=kind, group=group, bytes=size, in_loop=False, count=1
  )


def test_a_pair_and_a_wrapped_collective_count_once():
  text = (
    HEAD
    + """%wrapped (p: f32[8]) -> f32[1] {
  %p = f32[8]{0} parameter(0)
  ROOT %rs = f32[1]{0} reduce-scatter(%p), replica_groups={}, to_apply=%add
}, execution_thread="parallel"

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %a = ((f32[8]{0}), f32[1]{0}, s32[]) async-start(%p), calls=%wrapped
  %b = f32[1]{0} async-done(%a)
  %s = f32[8]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add
  %d = f32[8]{0} all-reduce-done(%s)
  %t = f32[8]{0} all-reduce(%d), replica_groups={}, to_apply=%add
  %all-reduce.9 = f32[8]{0} add(%t, %t), metadata={op_name="all-reduce(x)"}
}
"""
  )
  assert collectives(text) == (
    Collective("all-reduce", 8, 32, False, 2),
    Collective("reduce-scatter", 8, 32, False, 1),
  )


def test_what_loops_run_is_marked_at_any_depth():
  text = (
    HEAD
    + """%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%branch (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} call(%p), to_apply=%inner
}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} conditional(%i, %p, %p), branch_computations={%x, %branch}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %w = f32[8]{0} while(%p), condition=%cond, body=%body
  ROOT %r = f32[8]{0} all-reduce(%w), replica_groups={}, to_apply=%add
}
"""
  )
  assert collectives(text) == (
    Collective("all-reduce", 8, 32, False, 1),
    Collective("all-reduce", 8, 32, True, 1),
  )


def test_a_program_of_one_device_has_none():
  program = jax.jit(lambda x: (x @ x.T).sum()).lower(jax.numpy.ones((3, 4)))
  assert collectives(program.compile().as_text()) == ()
