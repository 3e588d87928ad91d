"""`bench.codegen` can tell code that breaks a rule: its readers and rules, on small pieces of code."""

import pytest

from bench.codegen import assembly, gcn, rules, sass, ttir
from bench.codegen.__main__ import unusable
from bench.codegen.cases import TARGETS, Case
from bench.codegen.compiling import Compiled
from bench.codegen.table import render

# ---------------------------------------------------------------- reading SASS

LISTING = """
	.section	.text._dots_kernel,"ax",@progbits
        .size           _dots_kernel,(.L_x_5 - _dots_kernel)
_dots_kernel:
.text._dots_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0140*/                   LDG.E.EF.128 R4, desc[UR4][R4.64] ;
        /*0160*/              @!P0 BRA `(.L_x_0) ;
.L_x_2:
        /*05e0*/                   LDG.E.EF.128 R12, desc[UR6][R12.64] ;
        /*0700*/                   FFMA R43, R22, R43, R45 ;
        /*0780*/                   SHFL.BFLY PT, R12, R13, 0x10, 0x1f ;
        /*08c0*/              @!P0 BRA `(.L_x_2) ;
        /*08d0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0960*/              @!P0 STG.E desc[UR10][R12.64], R15 ;
.L_x_0:
        /*09d0*/                   STG.E.128 desc[UR10][R28.64], R4 ;
        /*09e0*/                   EXIT ;
.L_x_4:
        /*09f0*/                   BRA `(.L_x_4);
        /*0a00*/                   NOP;
.L_x_5:
"""


def listing(text: str) -> assembly.Program:
    """The program of a listing given without addresses: labels end in a colon, guards begin with @."""
    lines = (line.strip() for line in text.strip().splitlines())
    return sass.read_sass("\n".join(line if line.endswith(":") else f"        /*0000*/ {line} ;" for line in lines))


def opcodes(program: assembly.Program, blocks) -> list[str]:
    return [i.opcode for i in program.inside(blocks)]


def test_a_listing_of_the_disassembler_is_read():
    program = sass.read_sass(LISTING)
    assert len(program.instructions) == 13
    assert opcodes(program, program.hot_loop.blocks) == ["LDG.E.EF.128", "FFMA", "SHFL.BFLY", "BRA"]
    path = program.inside(program.fast_path())
    assert len(path) == 11, "what follows EXIT only fills up"
    assert assembly.widths(path, "load") == {16: 2} and assembly.widths(path, "store") == {16: 1, 4: 1}
    assert sum(i.barrier for i in path) == 1 and not any(i.spill or i.atomic for i in path)


@pytest.mark.parametrize(
    ("line", "width"),
    [
        ("LDG.E.U16 R2, desc[UR8][R34.64+0x2]", 2),
        ("@P1 LDG.E.EF.U8 R2, [R34.64]", 1),
        ("LDG.E R2, desc[UR8][R34.64]", 4),
        ("LDG.E.64.CONSTANT R2, [R34.64]", 8),
        ("LDG.E.EF.128 R4, desc[UR4][R2.64]", 16),
        ("LDG.E.ENL2.256 R8, R4, desc[UR4][R2.64]", 32),
        ("LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]", 16),
    ],
)
def test_the_width_of_a_load_is_read(line, width):
    (load,) = listing(line).instructions
    assert load.access == "load" and load.width == width


@pytest.mark.parametrize(
    "line", ["LDS.128 R4, [R2]", "LDC.64 R2, c[0x0][0x210]", "ULDC.64 UR4, c[0x0][0x208]", "LDSM.16.M88 R15, [R30]"]
)
def test_other_memory_is_no_access(line):
    (load,) = listing(line).instructions
    assert load.access is None and load.width == 0


@pytest.mark.parametrize("line", ["STL [R1+0x4], R7", "LDL.LU R7, [R1+0x4]", "@P0 STL.128 [R1], R4"])
def test_a_spill_is_seen(line):
    assert [i.spill for i in listing(line).instructions] == [True]


@pytest.mark.parametrize(
    ("line", "what", "is_float"),
    [
        ("ATOMG.E.ADD.F32.FTZ.RN.STRONG.GPU PT, RZ, desc[UR12][R2.64], R11", "ADD.F32", True),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R11", "ADD.F32", True),
        ("REDG.E.ADD.F64.RN.STRONG.GPU desc[UR4][R2.64], R4", "ADD.F64", True),
        ("RED.E.ADD.F16x2.RN.STRONG.GPU [R2.64], R4", "ADD.F16x2", True),
        ("ATOMG.E.ADD.BF16_V2.RN.STRONG.GPU PT, RZ, [R2.64], R4", "ADD.BF16_V2", True),
        ("ATOMG.E.ADD.STRONG.GPU PT, R3, desc[UR4][R2.64], R5", "ADD", False),
        ("ATOMG.E.INC.STRONG.GPU PT, R3, desc[UR4][R2.64], R5", "INC", False),
        ("ATOMG.E.MAX.S32.STRONG.GPU PT, R3, desc[UR4][R2.64], R5", "MAX.S32", False),
    ],
)
def test_an_atomic_on_floats_is_told_from_one_on_integers(line, what, is_float):
    (atomic,) = listing(line).instructions
    assert atomic.atomic == what and atomic.is_float_atomic == is_float


def test_a_reduction_within_a_warp_is_no_atomic():
    assert [i.atomic for i in listing("REDUX.SUM.S32 UR4, R3").instructions] == [None]


DIVERGING = """
    LDG.E.64 R2, [R2.64]
.L_x_1:
    LDG.E.128 R4, [R2.64]
    BRA.DIV UR4, `(.L_x_2)
    SHFL.BFLY PT, R12, R13, 0x10, 0x1f
    @!P0 BRA `(.L_x_1)
    EXIT
.L_x_2:
    WARPSYNC.COLLECTIVE R7, `(.L_x_3)
.L_x_3:
    SHFL.BFLY P0, R12, R13, R14, R15
    LDG.E.128 R8, [R2.64]
    LDG.E.128 R8, [R2.64]
    BRA `(.L_x_1)
"""


def test_code_for_diverged_warps_is_left_out():
    program = listing(DIVERGING)
    assert opcodes(program, program.hot_loop.blocks) == ["LDG.E.128", "BRA.DIV", "SHFL.BFLY", "BRA"]
    assert opcodes(program, program.fast_path(program.hot_loop)) == ["LDG.E.128", "BRA.DIV", "SHFL.BFLY", "BRA"]
    assert len(program.inside(program.fast_path())) == 6


def test_a_jump_table_without_names_reaches_every_label_that_nothing_names():
    program = listing("""
        BRX R4 -0x3d0
    .L_x_6:
        LDG.E.128 R4, [R2.64]
        BRA `(.L_x_1)
    .L_x_7:
        LDG.E.64 R4, [R2.64]
    .L_x_1:
        BRA.DIV UR4, `(.L_x_2)
        EXIT
    .L_x_2:
        EXIT
    """)
    assert program.blocks[0].successors == [1, 2]
    assert assembly.widths(program.inside(program.order), "load") == {16: 1, 8: 1}


def test_a_jump_table_with_names_reaches_those():
    program = listing("""
        BRX R4 -0x3d0 (*"BRANCH_TARGETS .L_x_6,.L_x_8"*)
    .L_x_6:
        EXIT
    .L_x_7:
        LDG.E.128 R4, [R2.64]
        EXIT
    .L_x_8:
        EXIT
    """)
    assert program.blocks[0].successors == [1, 3] and 2 not in program.order


def test_the_hot_loop_is_the_innermost_one_that_loads_most():
    program = listing("""
    .L_x_0:
        LDG.E.128 R4, [R2.64]
        LDG.E.128 R4, [R2.64]
    .L_x_1:
        LDG.E.128 R4, [R2.64]
        FFMA R1, R1, R1, R1
        @P0 BRA `(.L_x_1)
    .L_x_2:
        LDG.E.64 R4, [R2.64]
        @P0 BRA `(.L_x_2)
    .L_x_3:
        FADD R1, R1, R1
        @P0 BRA `(.L_x_3)
        @P1 BRA `(.L_x_0)
        EXIT
    """)
    assert len(program.loops) == 3
    assert opcodes(program, program.hot_loop.blocks) == ["LDG.E.128", "FFMA", "BRA"]


def test_the_fast_path_moves_the_most_bytes_in_the_fewest_instructions():
    program = listing("""
        @P0 EXIT
        @P1 BRA `(.L_x_1)
        LDG.E.128 R4, [R2.64]
        @P2 BRA `(.L_x_2)
        FADD R1, R1, R1
        BRA `(.L_x_2)
    .L_x_1:
        LDG.E.U16 R4, [R2.64]
        LDG.E.U16 R4, [R2.64]
    .L_x_2:
        STG.E.128 [R2.64], R4
        @P0 EXIT
        STG.E [R2.64], R4
        EXIT
    """)
    found = opcodes(program, program.fast_path())
    assert found == ["EXIT", "BRA", "LDG.E.128", "BRA", "STG.E.128", "EXIT", "STG.E", "EXIT"]


def test_a_rare_loop_does_not_attract_the_fast_path():
    program = listing("""
    .L_x_0:
        LDG.E.128 R4, [R2.64]
        @P0 BRA `(.L_x_0)
        @P1 BRA `(.L_x_2)
        MOV R1, RZ
    .L_x_1:
        LDG.E.64 R4, [R2.64]
        @P0 BRA `(.L_x_1)
    .L_x_2:
        EXIT
    """)
    assert opcodes(program, program.fast_path()) == ["LDG.E.128", "BRA", "BRA", "EXIT"]


# ---------------------------------------------------------------- reading GCN

GCN = """
	.text
	.globl	_norm_kernel                    ; -- Begin function _norm_kernel
_norm_kernel:                           ; @_norm_kernel
.Lfunc_begin0:
	.file	1 "/kernels" "norm.py"
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_mov_b64 s[2:3], exec
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_readfirstlane_b32 s8, v2
	s_and_saveexec_b64 s[0:1], vcc
	buffer_load_dwordx4 v[4:7], v10, s[8:11], 0 offen
	s_xor_b64 exec, exec, s[0:1]
	s_cbranch_execnz .LBB0_1
.LBB0_2:
	s_waitcnt vmcnt(0)
	global_load_dwordx2 v[8:9], v[0:1], off
	buffer_load_ushort v11, v2, s[8:11], 0 offen
	s_barrier
	s_cbranch_scc1 .LBB0_2
	global_store_dword v1, v18, s[8:9]
	global_atomic_add_f32 v1, v0, s[0:1]
	global_atomic_add v1, v0, s[0:1]
	ds_write_b64 v13, v[8:9]
	scratch_store_dword off, v0, s32
	s_endpgm
.Lfunc_end0:
	s_nop 0
"""


def test_gcn_is_read():
    program = gcn.read_gcn(GCN)
    assert len(program.instructions) == 18
    loop = program.inside(program.hot_loop.blocks)
    assert assembly.widths(loop, "load") == {8: 1, 2: 1} and sum(i.barrier for i in loop) == 1
    path = program.inside(program.fast_path())
    assert assembly.widths(path, "load") == {16: 1, 8: 1, 2: 1} and assembly.widths(path, "store") == {4: 1}
    assert [(i.atomic, i.is_float_atomic) for i in path if i.atomic] == [("add_f32", True), ("add", False)]
    assert sum(i.spill for i in path) == 1


# ---------------------------------------------------------------- reading what a kernel asks for

MODULE = """
#loc = loc("kernel.py":1:0)
module {
  tt.func public @_dots_kernel(%table_ptr: !tt.ptr<i64> {tt.divisibility = 16 : i32}, %out_ptr: !tt.ptr<f32>) {
    %address = tt.load %table_ptr : !tt.ptr<i64> loc(#loc)
    %p = tt.int_to_ptr %address {tt.divisibility = dense<16> : tensor<1xi32>} : i64 -> !tt.ptr<i32> loc(#loc)
    %p_1 = tt.splat %p : !tt.ptr<i32> -> tensor<4x128x!tt.ptr<i32>> loc(#loc)
    %g = tt.load %p_1 evictionPolicy = evict_first : tensor<4x128x!tt.ptr<i32>> loc(#loc)
    scf.for %k0 = %c0_i32 to %window step %c32_i32  : i32 {
      %acc = scf.for %slot = %k0 to %4 step %c1_i32 iter_args(%row = %p_1) -> (tensor<4x128x!tt.ptr<i32>>)  : i32 {
        %w = tt.load %row, %mask, %other : tensor<4x128x!tt.ptr<i32>> loc(#loc)
        %s = "tt.reduce"(%s_38) <{axis = 1 : i32}> ({
        ^bb0(%s_47: f32 loc(#loc), %s_48: f32 loc(#loc)):
          tt.reduce.return %s_49 : f32 loc(#loc)
        }) : (tensor<4x128xf32>) -> tensor<4xf32> loc(#loc)
        scf.yield %row : tensor<4x128x!tt.ptr<i32>> loc(#loc)
      } loc(#loc)
      %o = tt.addptr %out_ptr, %unit : !tt.ptr<f32>, i64 loc(#loc)
      %o_1 = tt.splat %o : !tt.ptr<f32> -> tensor<4x32x!tt.ptr<f32>> loc(#loc)
      tt.store %o_1, %acc, %9 : tensor<4x32x!tt.ptr<f32>> loc(#loc)
    } loc(#loc)
    tt.store %p_1, %g : tensor<4x128x!tt.ptr<i32>> loc(#loc)
    %9 = tt.atomic_rmw fadd, acq_rel, gpu, %6, %8, %true : (!tt.ptr<f32>, f32, i1) -> f32 loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""


def test_what_a_kernel_asks_for_is_read():
    asked = ttir.read_ttir(MODULE)
    assert list(asked.accesses) == [
        ttir.Access("load", 1, 8, False, (), "table_ptr"),
        ttir.Access("load", 512, 4, False, (), ""),
        ttir.Access("load", 512, 4, True, (0, 1), ""),
        ttir.Access("store", 128, 4, True, (0,), "out_ptr"),
        ttir.Access("store", 512, 4, False, (), ""),
    ]
    assert asked.innermost == {1} and asked.hot_loop == [asked.accesses[2]]
    assert asked.outside == [a for a in asked.accesses if a.loops != (0, 1)]
    assert asked.atomics == ("fadd",) and not asked.multiplies_matrices


def test_unrolling_is_undone():
    row = ttir.Access("load", 512, 4, False, (0,), "")
    unrolled = ttir.Kernel((row,) * 4, unroll=4)
    assert unrolled.hot_loop == [row]
    other = ttir.Kernel((row, row, ttir.Access("load", 1, 8, False, (0,), "table_ptr")), unroll=4)
    assert other.hot_loop == list(other.accesses), "another loop was unrolled"


# ---------------------------------------------------------------- the rules

FAST = """
    LDG.E.64 R2, [R2.64]
    LDG.E.128 R4, [R2.64]
.L_x_1:
    LDG.E.128 R12, [R2.64]
    FFMA R1, R1, R1, R1
    @!P0 BRA `(.L_x_1)
    STG.E [R2.64], R4
    STG.E.128 [R2.64], R4
    EXIT
"""
VARIANT = {
    "name": "dots-bfloat16",
    "constexprs": {"CODE": 2},
    "num_warps": 4,
    "options": {},
    "elements": 1024,
    "min_vector_bytes": 16,
    "max_instructions_per_element": 0.5,
    "loop": True,
}
QUIET = MODULE.replace("atomic_rmw fadd", "atomic_rmw add")


def examine(code: str, module: str = QUIET, spilled: int = 0, **changes) -> rules.Record:
    compiled = Compiled(listing(code), ttir.read_ttir(module), registers=40, spilled=spilled, shared_bytes=0)
    return rules.Examination(Case("dots", VARIANT | changes), TARGETS["sm_90"], compiled).record()


def with_line(new: str, before: str) -> str:
    assert FAST.count(before) == 1
    return FAST.replace(before, f"{new}\n{before}")


def test_clean_code_breaks_no_rule():
    record = examine(FAST)
    assert record.broken == {}
    assert record.per_element == 3 * 128 / 1024 and record.outside_per_element == 5 * 128 / 1024
    assert record.loads == {16: 1} and record.goal == 0.5


def test_a_loop_that_the_compiler_unrolled_counts_every_pass():
    twice = with_line("LDG.E.128 R16, [R2.64+0x800]\nFFMA R1, R1, R1, R1", "@!P0 BRA `(.L_x_1)")
    assert examine(twice).per_element == 5 * 128 / 2048


def narrow(text: str, line: str, pieces: int, width: str) -> str:
    """The listing with one wide access cut into narrow ones."""
    assert text.count(line) == 1
    return text.replace(line, "\n".join([line.replace(".128", width)] * pieces))


@pytest.mark.parametrize(
    ("code", "changes", "rule", "words"),
    [
        (with_line("STL [R1], R4", "EXIT"), {}, "spills", "1 accesses"),
        (with_line("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4", "EXIT"), {}, "atomics", "RED.E.ADD.F32"),
        (narrow(FAST, "LDG.E.128 R4, [R2.64]", 8, ".U16"), {}, "loads", "outside of loops"),
        (narrow(FAST, "LDG.E.128 R12, [R2.64]", 4, ""), {"elements": 4096}, "loads", "in the hot loop"),
        (narrow(FAST, "LDG.E.128 R12, [R2.64]", 2, ".64"), {}, "loads", "0 of 2048 bytes in the hot loop"),
        (narrow(FAST, "STG.E.128 [R2.64], R4", 2, ".64"), {}, "stores", "0 of 2048 bytes outside of loops"),
        (with_line("LDG.E.U16 R9, [R2.64]", "FFMA"), {}, "loads", "1×2 bytes in the hot loop are narrow, 0"),
        (with_line("LDG.E.64 R9, [R2.64]\nLDG.E.64 R9, [R2.64]", "STG.E.128"), {}, "loads", "3×8 bytes outside"),
        (with_line("FADD R1, R1, R1\nFADD R1, R1, R1", "@!P0"), {}, "instructions", "0.62 per element, allowed 0.5"),
        (with_line("CALL.REL.NOINC `($div)", "@!P0"), {}, "instructions", "calls a function"),
        (FAST, {"loop": False}, "instructions", "declares none"),
        (with_line("BAR.SYNC 0x0", "@!P0"), {}, "barriers", "1 in the hot loop"),
        (narrow(FAST, "STG.E.128 [R2.64], R4", 2, ".64"), {"constexprs": {"CODE": -1}}, "stores", "0 of 2048 bytes"),
    ],
)
def test_a_broken_rule_is_named(code, changes, rule, words):
    broken = examine(code, **changes).broken
    assert list(broken) == [rule] and words in broken[rule]


def test_an_atomic_on_floats_is_seen_before_the_target_hides_it():
    assert list(examine(FAST, MODULE).broken) == ["atomics"]


def test_spills_that_only_the_compiler_knows_are_seen():
    assert list(examine(FAST, spilled=3).broken) == ["spills"]


def test_a_matrix_product_may_have_barriers():
    assert examine(with_line("BAR.SYNC 0x0", "@!P0"), QUIET + "%d = tt.dot %a, %b, %c").broken == {}


def test_goals_are_for_one_target_only():
    compiled = Compiled(listing(with_line("FADD R1, R1, R1\n" * 9, "@!P0")), ttir.read_ttir(QUIET), 40, 0, 0)
    assert list(rules.Examination(Case("dots", VARIANT), TARGETS["sm_90"], compiled).record().broken) == [
        "instructions"
    ]
    assert rules.Examination(Case("dots", VARIANT), TARGETS["sm_80"], compiled).record().broken == {}


@pytest.mark.parametrize(("most", "is_broken"), [(0.7, False), (0.6, True)])
def test_instructions_outside_of_loops_may_have_a_goal(most, is_broken):
    broken = examine(FAST, max_outside_instructions_per_element=most).broken
    assert list(broken) == ["instructions"] * is_broken
    assert not is_broken or broken["instructions"] == "0.62 per element outside of loops, allowed 0.6"


def test_a_kernel_that_triton_refuses_once_is_refused_for_every_target():
    class Refused:
        __name__ = "_norm_kernel"
        looked = 0

        @property
        def cache_key(self) -> str:
            self.looked += 1
            if self.looked == 1:
                raise RuntimeError("conflicting\nvalue")
            return "good from now on"

    case = Case("norm", VARIANT | {"kernel": Refused()})
    assert unusable([case, case]) == {"_norm_kernel": "RuntimeError: conflicting value"}


def test_the_table_has_a_row_for_every_record_and_names_what_is_broken():
    records = [examine(FAST), examine(with_line("STL [R1], R4", "EXIT"))]
    page = render(records, "3.8.0")
    assert "by triton 3.8.0" in page and "2 compilations, 1 of which breaks a rule." in page
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "sm_90  |" in line]
    assert [row[1:5] + row[-2:-1] for row in rows] == [
        ["dots-bfloat16", "sm_90", "0.38", "0.5", ""],
        ["", "sm_90", "0.38", "0.5", "spills"],
    ]
