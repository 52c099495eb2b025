// The C interface: which instruction sets there are, and operators run one after the other.

#include <chrono>

#include "pool.h"
#include "runtime.h"

namespace {

const maxq::Kernels* kernels(int64_t lanes) {
#if defined(__x86_64__) && !defined(MAXQ_EMULATE)
  if (lanes == 8) return &maxq::kAvx2;
#endif
  return &maxq::kAvx512;
}

}  // namespace

extern "C" {

// Lanes of the widest vectors that the processor and the system offer, 0 if there are none that fit.
int64_t maxq_lanes() {
#if defined(MAXQ_EMULATE)
  return 16;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 0;
}

// Output channels that the kernels of so many lanes compute side by side.
int64_t maxq_outputs(int64_t lanes) { return kernels(lanes)->outputs; }

// Bytes of an operator, so that its mirror is checked.
int64_t maxq_op_bytes() { return sizeof(maxq::Op); }

// Runs operators on memory of `arena` floats and tensors outside; microseconds (null, or one for
// each operator) tells how long each took.
void maxq_run(int64_t lanes, const maxq::Op* ops, int64_t count, float* arena,
              float* const* externals, int64_t threads, double* microseconds) {
  const maxq::Kernels& chosen = *kernels(lanes);
  const maxq::Run run{arena, externals, threads};
  using Clock = std::chrono::steady_clock;
  auto before = Clock::now();
  const auto stop = [&](int64_t i) {
    const auto now = Clock::now();
    if (microseconds && i >= 0)
      microseconds[i] = std::chrono::duration<double, std::micro>(now - before).count();
    before = now;
  };
  maxq::run_jobs(
      count,
      [&](int64_t i) {
        stop(i - 1);
        const maxq::Op& op = ops[i];
        return maxq::Job{chosen.items(op, run),
                         [&](int64_t item, float* scratch) { chosen.run_item(op, run, item, scratch); },
                         chosen.scratch(op)};
      },
      threads);
  stop(count - 1);
}

}  // extern "C"
