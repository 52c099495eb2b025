// Threads that share the items of one job after another.
//
// The caller works, too, and does whatever nobody else takes; it waits only for items that a thread
// has begun. Several callers may run at once. Helpers are created when first wanted and kept.
#pragma once

#include <cstdint>
#include <functional>

namespace maxq {

struct Job {
  int64_t items;
  std::function<void(int64_t item, float* scratch)> run;
  int64_t scratch;  // floats that an item needs
};

// Runs the jobs one after the other, each on up to `threads` threads.
void run_jobs(int64_t count, const std::function<Job(int64_t)>& job, int64_t threads);

}  // namespace maxq
