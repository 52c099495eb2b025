// The C interface: which instruction sets there are, and operators run step after step.

#include <chrono>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pool.h"
#include "runtime.h"

namespace {

const maxq::Kernels& kernels(int64_t number) {
#if !defined(MAXQ_EMULATE)
  if (number == 0) return maxq::kPixelsAvx2;
  if (number == 1) return maxq::kOutputsAvx512;
#endif
  if (number == 2) return maxq::kPixelsAvx512;
  return number == 3 ? maxq::kOutputsVnni : maxq::kOutputsAmx;
}

// Whether there are matrix instructions for bytes, and the system lets this process use them: their
// registers are large, so it wants to be asked.
[[maybe_unused]] bool allows_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_tiles = d >> 24 & 1, has_int8 = d >> 25 & 1;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_tiles && has_int8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

extern "C" {

// What the processor and the system offer: 4 AMX with what follows, 3 AVX-512 with VBMI and VNNI,
// 2 AVX-512, 1 AVX2, 0 none.
int64_t maxq_level() {
#if defined(MAXQ_EMULATE)
  return 4;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    if (!__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vnni")) return 2;
    return allows_amx() ? 4 : 3;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// Of the kernels with this number: lanes, outputs side by side, those in int8, width of a tile, unit
// of channels.
void maxq_describe(int64_t number, int64_t* to) {
  const maxq::Kernels& chosen = kernels(number);
  to[0] = chosen.lanes;
  to[1] = chosen.outputs;
  to[2] = chosen.int8_outputs;
  to[3] = chosen.width;
  to[4] = chosen.unit;
}

// Bytes of an operator, so that its mirror is checked.
int64_t maxq_op_bytes() { return sizeof(maxq::Op); }

// Runs steps of operators on memory of `arena` and tensors outside; how long each operator took is
// added to microseconds (null, or one for each).
void maxq_run(int64_t number, const maxq::Op* ops, const maxq::Step* steps, int64_t count,
              char* arena, float* const* externals, int64_t threads, double* microseconds) {
  const maxq::Kernels& chosen = kernels(number);
  const maxq::Run run{arena, externals, threads};
  using Clock = std::chrono::steady_clock;
  auto before = Clock::now();
  const auto stop = [&](int64_t i) {
    const auto now = Clock::now();
    if (microseconds && i >= 0)
      microseconds[steps[i].op] +=
          std::chrono::duration<double, std::micro>(now - before).count();
    before = now;
  };
  maxq::run_jobs(
      count,
      [&](int64_t i) {
        stop(i - 1);
        const maxq::Step& step = steps[i];
        const maxq::Op& op = ops[step.op];
        return maxq::Job{chosen.items(op, run, step),
                         [&](int64_t item, float* scratch) {
                           chosen.run_item(op, run, step, item, scratch);
                         },
                         chosen.scratch(op)};
      },
      threads);
  stop(count - 1);
}

}  // extern "C"
