#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace maxq {
namespace {

constexpr int kSpins = 1000;  // some 20 microseconds: the next operator is that near

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Memory of a thread, for one item at a time.
struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { std::free(data); }
  float* get(int64_t wanted) {
    if (wanted > size) {
      std::free(data);
      size = (wanted + 1023) / 1024 * 1024;
      data = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
      if (!data) std::abort();
    }
    return data;
  }
};

float* scratch(int64_t size) {
  thread_local Scratch mine;
  return mine.get(size);
}

// The processors that a caller's helpers may run on: those of the caller but for the one it is on. A
// system may wake a helper on the very processor of its caller and leave both there for
// milliseconds, while another is idle.
class Places {
 public:
  // Those of who asks.
  static Places beside_caller() {
    Places found;
#if defined(__linux__)
    const int here = sched_getcpu();
    if (sched_getaffinity(0, sizeof found.set_, &found.set_) == 0 && here >= 0 &&
        CPU_COUNT(&found.set_) > 1)
      CPU_CLR(here, &found.set_);
#endif
    return found;
  }
  // Has a thread that was kept to `before` run here.
  void keep(pthread_t thread, Places& before) const {
#if defined(__linux__)
    if (CPU_COUNT(&set_) == 0 || CPU_EQUAL(&set_, &before.set_)) return;
    pthread_setaffinity_np(thread, sizeof set_, &set_);  // where it may not, things stay as they are
#endif
    before = *this;
  }

 private:
#if defined(__linux__)
  cpu_set_t set_{};
#endif
};

// A caller and its helpers. Shared: a helper that was not scheduled may look at it long after the
// caller has left; it touches nothing else unless it has taken an item.
struct Team {
  // Number of the job in the upper half, items that nobody has taken in the lower.
  std::atomic<uint64_t> open{0};
  std::atomic<int64_t> done{0};
  std::atomic<int64_t> sleepers{0};
  std::atomic<bool> caller_sleeps{false}, closed{false};
  Job job;  // holds while one of its items is taken and not done
  int64_t wanted = 0;  // more helpers; under the pool's mutex
  Places places;       // of them
  std::mutex mutex;
  std::condition_variable more, all_done;

  // Takes an item and does it; false if there is none.
  bool work() {
    uint64_t seen = open.load();
    do {
      if (static_cast<uint32_t>(seen) == 0) return false;
    } while (!open.compare_exchange_weak(seen, seen - 1));
    const int64_t items = job.items;
    job.run(static_cast<int64_t>(static_cast<uint32_t>(seen)) - 1, scratch(job.scratch));
    if (done.fetch_add(1) + 1 == items && caller_sleeps.load()) {
      const std::lock_guard lock(mutex);
      all_done.notify_all();
    }
    return true;
  }

  void lead(Job next) {
    job = std::move(next);
    if (job.items <= 1) {  // not worth a word to others
      for (int64_t i = 0; i < job.items; ++i) job.run(i, scratch(job.scratch));
      return;
    }
    done.store(0);
    publish(static_cast<uint64_t>(job.items));
    while (work()) {
    }
    for (int i = 0; i < kSpins && done.load() < job.items; ++i) relax();
    if (done.load() == job.items) return;
    caller_sleeps.store(true);
    std::unique_lock lock(mutex);
    all_done.wait(lock, [&] { return done.load() == job.items; });
    caller_sleeps.store(false);
  }

  void publish(uint64_t items) {
    open.store(((open.load() >> 32) + 1) << 32 | items);
    if (sleepers.load() == 0) return;
    const std::lock_guard lock(mutex);
    more.notify_all();
  }

  void close() {
    closed.store(true);
    publish(0);
  }

  void help() {
    const auto wake = [&] { return static_cast<uint32_t>(open.load()) != 0 || closed.load(); };
    while (!closed.load()) {
      while (work()) {
      }
      for (int i = 0; i < kSpins && !wake(); ++i) relax();
      if (wake()) continue;
      std::unique_lock lock(mutex);
      ++sleepers;
      more.wait(lock, wake);
      --sleepers;
    }
  }
};

// A thread that works for one team after another; all of it under the pool's mutex.
struct Helper {
  const pthread_t thread = pthread_self();
  Places places;
  std::shared_ptr<Team> team;
  std::condition_variable called;

  void join(const std::shared_ptr<Team>& next) {
    --next->wanted;
    next->places.keep(thread, places);
    team = next;
  }
};

class Pool {
 public:
  void open(const std::shared_ptr<Team>& team, int64_t helpers) {
    team->places = Places::beside_caller();
    team->wanted = helpers;
    const std::lock_guard lock(mutex_);
    teams_.push_back(team);
    for (; team->wanted > 0 && !idle_.empty(); idle_.pop_back()) {
      idle_.back()->join(team);
      idle_.back()->called.notify_one();
    }
    for (; threads_ < helpers; ++threads_) {
      try {
        std::thread(&Pool::serve, this).detach();
      } catch (const std::system_error&) {  // no more threads here: fewer do it
        break;
      }
    }
  }

  void close(const std::shared_ptr<Team>& team) {
    team->close();
    const std::lock_guard lock(mutex_);
    teams_.remove(team);
  }

 private:
  void serve() {
    Helper me;
    std::unique_lock lock(mutex_);
    for (;;) {
      if (const auto team = next()) {
        me.join(team);
      } else {
        idle_.push_back(&me);
        me.called.wait(lock, [&] { return me.team != nullptr; });
      }
      lock.unlock();
      me.team->help();
      lock.lock();
      me.team = nullptr;
    }
  }

  std::shared_ptr<Team> next() const {
    for (const auto& team : teams_)
      if (team->wanted > 0) return team;
    return nullptr;
  }

  std::mutex mutex_;
  std::list<std::shared_ptr<Team>> teams_;
  std::vector<Helper*> idle_;
  int64_t threads_ = 0;
};

// Never destroyed: helpers sleep in it until the process ends.
Pool* pool = [] {
  // The child of a fork has no helpers, and locks that nobody will open.
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  return new Pool;
}();

}  // namespace

void run_jobs(int64_t count, const std::function<Job(int64_t)>& job, int64_t threads) {
  const auto team = std::make_shared<Team>();
  Pool* const mine = pool;
  if (threads > 1) mine->open(team, threads - 1);
  for (int64_t i = 0; i < count; ++i) {
    if (threads > 1) {
      team->lead(job(i));
    } else {
      const Job alone = job(i);
      for (int64_t item = 0; item < alone.items; ++item) alone.run(item, scratch(alone.scratch));
    }
  }
  if (threads > 1) mine->close(team);
}

}  // namespace maxq
