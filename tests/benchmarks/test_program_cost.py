"""The text of compiled programs: what is a kernel, what it computes and moves, which collectives there are."""

import jax
import jax.numpy as jnp
import pytest

from inception_jax.benchmarks import hlo_text, program_cost, program_properties, program_summary, weak_scaling
from inception_jax.benchmarks.hardware import Limits
from inception_jax.training.parallel import Compiled

# In the manner of XLA's text for GPUs: fusions, a call of cuDNN with its workspace, a captured graph, a loop.
GPU = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, \
entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add.1 (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%slices (param_0: f32[1000], param_1: f32[10]) -> f32[10] {
  %param_0 = f32[1000]{0} parameter(0)
  %param_1 = f32[10]{0} parameter(1)
  %cut = f32[10]{0} slice(%param_0), slice={[0:10]}
  ROOT %product = f32[10]{0} multiply(%cut, %param_1)
}

%update (param_0.1: f32[1000], param_1.1: f32[10], param_2: s32[]) -> f32[1000] {
  %param_0.1 = f32[1000]{0} parameter(0)
  %param_1.1 = f32[10]{0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %written = f32[1000]{0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2)
}

%two (param_0.2: f32[1000], param_1.2: f32[10], param_2.2: s32[]) -> (f32[1000], f32[10]) {
  %param_0.2 = f32[1000]{0} parameter(0)
  %param_1.2 = f32[10]{0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %square = f32[10]{0} multiply(%param_1.2, %param_1.2)
  %written.2 = f32[1000]{0} dynamic-update-slice(%param_0.2, %square, %param_2.2)
  %same = f32[1000]{0} bitcast(%written.2)
  ROOT %both = (f32[1000]{0}, f32[10]{0}) tuple(%same, %square)
}

%graph (p: f32[1000], q: f32[10]) -> f32[10] {
  %p = f32[1000]{0} parameter(0)
  %q = f32[10]{0} parameter(1)
  ROOT %fusion.1 = f32[10]{0} fusion(%p, %q), kind=kLoop, calls=%slices, metadata={op_name="jit(f)/jvp(Net)/3a/mul"}
}

%body (t: f32[10]) -> f32[10] {
  %t = f32[10]{0} parameter(0)
  ROOT %twice = f32[10]{0} copy(%t)
}

%condition (t.1: f32[10]) -> pred[] {
  %t.1 = f32[10]{0} parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (arg: f32[1000], arg.1: f32[10], arg.2: bf16[2,8,8,4], arg.3: bf16[3,3,4,16], arg.4: s32[]) -> f32[10] {
  %arg = f32[1000]{0} parameter(0)
  %arg.1 = f32[10]{0} parameter(1)
  %arg.2 = bf16[2,8,8,4]{3,2,1,0} parameter(2)
  %arg.3 = bf16[16,3,3,4]{3,2,1,0} parameter(3)
  %arg.4 = s32[] parameter(4)
  %conv = (bf16[2,8,8,16]{3,2,1,0}, u8[4096]{0}) custom-call(%arg.2, %arg.3), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/conv (x)/conv"}
  %map = bf16[2,8,8,16]{3,2,1,0} get-tuple-element(%conv), index=0
  %kernel = (bf16[16,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%arg.2, %map), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %call = f32[10]{0} call(%arg, %arg.1), to_apply=%graph
  %fusion.2 = f32[1000]{0} fusion(%arg, %call, %arg.4), kind=kLoop, calls=%update
  %whole = f32[1000]{0} dynamic-update-slice(%fusion.2, %call, %arg.4)
  %part = f32[10]{0} dynamic-slice(%whole, %arg.4), dynamic_slice_sizes={10}
  %fusion.3 = (f32[1000]{0}, f32[10]{0}) fusion(%whole, %part, %arg.4), kind=kLoop, calls=%two
  %loop = f32[10]{0} while(%call), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %start = f32[10]{0} all-reduce-start(%loop), to_apply=%add.1
  %done = f32[10]{0} all-reduce-done(%start)
  ROOT %end = f32[10]{0} bitcast(%done)
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo_text.parse(GPU)


def test_kernels_with_their_flops_and_bytes(program):
    kernels = {kernel.name: kernel for kernel in program_cost.find_kernels(program)}
    assert list(kernels) == ["conv", "kernel", "fusion.1", "fusion.2", "whole", "part", "fusion.3", "twice", "start"]
    inside = (3 * 8 - 2) ** 2  # taps that do not lie on the padding, summed over a map
    for name in ("conv", "kernel"):
        assert kernels[name].kind == "convolution"
        assert kernels[name].flops == 2 * 2 * inside * 4 * 16
    assert kernels["conv"].nbytes == 2 * (2 * 64 * 4 + 9 * 4 * 16 + 2 * 64 * 16)  # without the workspace
    assert kernels["conv"].op_name == "jit(f)/conv (x)/conv"
    assert kernels["fusion.1"].nbytes == 4 * (10 + 10 + 10)  # of a thousand numbers ten are read
    assert kernels["fusion.2"].nbytes == 4 * (10 + 1 + 10)  # ten numbers are written, in place
    assert kernels["whole"].nbytes == 4 * (10 + 10)  # the ten numbers are read, and written over those of the operand
    assert kernels["part"].nbytes == 4 * (10 + 10)
    assert kernels["fusion.3"].nbytes == 4 * (10 + 1 + 10 + 10)  # both results, of the first the ten that change
    assert kernels["twice"].runs == 7
    assert kernels["start"].kind == "collective"


# In the manner of XLA's text for TPUs: halves of a map are copied to the chip beside other kernels, and joined there.
TPU = """\
HloModule jit_step, is_scheduled=true

%condition (t: (s32[], f32[1000])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(8)
  %t = (s32[]{:T(128)}, f32[1000]{0:T(1000)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %less = pred[]{:T(512)} compare(%number, %constant.1), direction=LT
}

%body (t.1: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %t.1 = (s32[]{:T(128)}, f32[1000]{0:T(1000)}) parameter(0)
  %values = f32[1000]{0:T(1000)} get-tuple-element(%t.1), index=1
  %twice = f32[1000]{0:T(1000)} copy(%values)
  ROOT %next = (s32[]{:T(128)}, f32[1000]{0:T(1000)}) tuple(%number.1, %twice)
}

ENTRY %main (arg: bf16[256,4,8,128], arg.1: s32[]) -> bf16[256,2,8,128] {
  %arg = bf16[256,4,8,128]{0,3,2,1:T(8,128)(2,1)} parameter(0)
  %arg.1 = s32[]{:T(128)S(6)} parameter(1)
  %one = ((bf16[256,4,8,128]{0,3,2,1:T(8,128)(2,1)}), bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) \
slice-start(%arg), slice={[0:256], [0:2], [0:8], [0:128]}
  %one.done = bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)S(1)} slice-done(%one)
  %two = ((bf16[256,4,8,128]{0,3,2,1:T(8,128)(2,1)}, s32[]{:T(128)S(6)}), bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)}, \
s32[]{:S(2)}) dynamic-slice-start(%arg, %arg.1), dynamic_slice_sizes={256,2,8,128}
  %two.done = bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)} dynamic-slice-done(%two)
  %joined = bf16[256,4,8,128]{0,3,2,1:T(8,128)(2,1)S(1)} custom-call(%one.done, %two.done), \
custom_call_target="ConcatBitcast"
  %part = bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)S(1)} slice(%arg), slice={[0:256], [0:2], [0:8], [0:128]}
  %room = f32[1000]{0:T(1000)} custom-call(), custom_call_target="AllocateBuffer"
  %chip = f32[1000]{0:T(1000)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %few = f32[100]{0:T(100)S(1)} broadcast(%arg.1), dimensions={}
  %out = f32[1000]{0:T(1000)} dynamic-update-slice(%room, %few, %arg.1)
  %in = f32[1000]{0:T(1000)S(1)} dynamic-update-slice(%chip, %some, %arg.1)
  %some = f32[100]{0:T(100)} copy(%few)
  %sum = (f32[1000]{0:T(1000)}, f32[100]{0:T(100)}) all-reduce-start(%out, %some), to_apply=%condition
  %sum.done = (f32[1000]{0:T(1000)}, f32[100]{0:T(100)}) all-reduce-done(%sum)
  %gather = (f32[100]{0:T(100)}, f32[400]{0:T(400)}) all-gather-start(%some), dimensions={0}
  %gather.done = f32[400]{0:T(400)} all-gather-done(%gather)
  %moved = (f32[100]{0:T(100)}, f32[100]{0:T(100)S(1)}, u32[], u32[]) collective-permute-start(%some)
  %moved.done = f32[100]{0:T(100)S(1)} collective-permute-done(%moved)
  %saved = (f32[100]{0:T(100)}, f32[100]{0:T(100)S(1)}, u32[]{:S(2)}) copy-start(%few)
  %saved.done = f32[100]{0:T(100)} copy-done(%saved)
  %loop = (s32[]{:T(128)}, f32[1000]{0:T(1000)}) while(%begin), condition=%condition, body=%body
  ROOT %inside = bf16[256,2,8,128]{0,3,2,1:T(8,128)(2,1)} slice(%joined), slice={[0:256], [0:2], [0:8], [0:128]}
}
"""


def test_memory_on_the_chip_asynchronous_operations_and_loops():
    """Bytes of main memory alone; each array once, though the start of an operation names its operands, too."""
    kernels = {kernel.name: kernel for kernel in program_cost.find_kernels(hlo_text.parse(TPU))}
    half, hundred = 2 * 256 * 2 * 8 * 128, 4 * 100
    assert {name: kernel.nbytes for name, kernel in kernels.items()} == {
        "one": half, "two": 2 * half, "part": half, "inside": half,
        "few": 0, "out": hundred, "in": hundred, "some": hundred, "sum": 2 * 11 * hundred,
        "gather": 5 * hundred, "moved": hundred, "saved": hundred, "twice": 2 * 10 * hundred,
    }  # fmt: skip
    assert kernels["twice"].runs == 8


def test_collectives_and_sums_in_16_bits(program):
    assert program_properties.find_collectives(program) == [program_properties.Collective("all-reduce", 40, 1)]
    assert program_properties.half_precision_sums(program) == ["start"]
    assert program_properties.half_precision_sums(hlo_text.parse(GPU.replace("bf16[] ", "f32[] "))) == []
    assert program_properties.convolution_dtypes(program) == {"bf16"}
    assert program_properties.count_aliased(GPU) == 2


def test_layouts_of_a_tpu():
    text = "(bf16[256,28,28,192]{0,3,2,1:T(8,128)(2,1)}, f32[5,100]{1,0:T(8,128)}, f32[64]{0:T(128)S(1)})"
    tiled, padded, on_chip = hlo_text.parse_arrays(text)
    assert tiled.nbytes == 2 * tiled.size  # 256 and 192 are multiples of the tile's sides
    assert padded.nbytes == 4 * 8 * 128
    assert on_chip.nbytes == 0 and on_chip.size == 64


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo_text.parse("HloModule nothing")


def test_the_compilers_flops_of_convolutions():
    """Forward pass and both gradients, with strides, dilated and padded on one side, against XLA's own count."""

    def run(x, kernel):
        def forward(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, (2, 2), ((0, 1), (2, 1)), rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        y, pullback = jax.vjp(forward, x, kernel)
        return pullback(y)

    lowered = jax.jit(run).lower(jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8)))
    kernels = program_cost.find_kernels(hlo_text.parse(lowered.as_text(dialect="hlo")))
    ours = sum(kernel.flops for kernel in kernels if kernel.kind == "convolution")
    assert ours == pytest.approx(lowered.cost_analysis()["flops"], rel=1e-3) and ours > 0


def test_a_matrix_product_and_the_summary_of_a_compiled_program():
    def step(state, x):
        return state + 1.0, jnp.sin(x @ x)

    shapes = jax.ShapeDtypeStruct((16,), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = Compiled(jax.jit(step, donate_argnums=0).lower(*shapes).compile(), 0.0)
    summary = program_summary.summarize(compiled, Limits(1e12, 1e9, "given"))
    assert summary["flops"] == 2 * 64**3
    assert summary["bytes"] >= 4 * (2 * 16 + 2 * 64**2)
    assert summary["side"] == "memory" and summary["seconds"] >= summary["bytes"] / 1e9
    assert [summary["properties"][name] for name in ("aliased", "donated", "arguments")] == [1, 1, 2]
    assert summary["collectives"] == []
    for rows in ("kinds", "blocks"):
        assert sum(row["bytes"] for row in summary[rows]) == pytest.approx(summary["bytes"])
    assert summary["small_kernel_seconds"] == summary["small_kernels"] * program_summary.SMALL_SECONDS > 0
    assert program_summary.summarize(compiled, Limits(None, None, ""))["seconds"] is None


def test_blocks():
    path = "jit(step)/transpose(jvp(InceptionV1))/inception_3a/conv_1x1/conv_general_dilated"
    assert program_summary.find_block(path, {"inception_3a", "conv1"}) == "inception_3a"
    path = "jit(step)/jit(shmap_body)/jvp(InceptionV1)/jit(max_pool)/jit(_where)/select_n"
    assert program_summary.find_block(path, {"inception_3a"}) == "max_pool"
    assert program_summary.find_block("jit(step)/add", {"inception_3a"}) == "the rest"


def test_the_model_of_weak_scaling():
    links = weak_scaling.Links(100e9, 8, 10e9, 0, 0, "made up")
    one_host = weak_scaling.all_reduce_seconds(1e9, 8, links)
    assert one_host == pytest.approx(2 * (7 / 8 * 1e9 / 100e9 + 7e-6))
    two_hosts = weak_scaling.all_reduce_seconds(1e9, 16, links)
    assert two_hosts == pytest.approx(one_host + 2 * (1e9 / 8 / 2 / 10e9 + 5e-6))
    assert weak_scaling.all_reduce_seconds(1e9, 1, links) == 0
    torus = weak_scaling.LINKS["v5e"]
    ring, line = (nbytes * 2 * 255 / 256 / torus.inside for nbytes in (1e9, 2e9))
    assert weak_scaling.all_reduce_seconds(1e9, 256, torus) == pytest.approx(ring + 2 * 30e-6)
    assert weak_scaling.all_reduce_seconds(1e9, 64, torus) == pytest.approx(line * (63 / 64) / (255 / 256) + 2 * 14e-6)
    rows = weak_scaling.predict(0.01, [1e9], links)
    assert [row["devices"] for row in rows] == list(weak_scaling.COUNTS)
    speeds = [row["efficiency"] for row in rows]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] == pytest.approx(0.01 / (0.01 + one_host))
