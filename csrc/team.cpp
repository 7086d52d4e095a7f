// See team.h. No object here is ever destroyed: at the end of the process workers may still be asleep in them.
#include "parallel.h"

#if !defined(LTH_OPENMP)

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace lth {
namespace {

constexpr std::chrono::microseconds kWatch{30};  // then to sleep: waking costs about as much

// A value that threads wait for.
template <class V>
class Watched {
 public:
  explicit Watched(V value) : value_(value) {}

  V get() const { return value_.load(std::memory_order_acquire); }

  void set(V value) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      value_.store(value, std::memory_order_release);
    }
    changed_.notify_all();
  }

  V wait_while(V old) {
    const auto enough = std::chrono::steady_clock::now() + kWatch;
    do {
      const V value = get();
      if (value != old) return value;
    } while (std::chrono::steady_clock::now() < enough);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return get() != old; });
    return get();
  }

 private:
  std::atomic<V> value_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

// One call of run_team, on its stack: run_team returns after every worker has left `body`, barriers included.
struct Team {
  void (*body)(void*, int, int);
  void* context;
  int threads;
  std::atomic<int> arrived{0};
  Watched<unsigned> barriers{0};  // passed so far
};

struct Worker {
  Watched<Team*> team{nullptr};  // set by the caller that leased this worker, cleared by the worker when it is done
  int thread = 0;
  Worker* next = nullptr;  // in the list of idle workers, or of those of one team
};

thread_local Team* current = nullptr;

void work(Team& team, int thread) {
  Team* const outer = current;
  current = &team;
  team.body(team.context, thread, team.threads);
  current = outer;
}

[[noreturn]] void run(Worker& worker) noexcept {
  for (;;) {
    Team* const team = worker.team.wait_while(nullptr);
    work(*team, worker.thread);
    worker.team.set(nullptr);
  }
}

Worker* start_worker() {
  Worker* const worker = new Worker;
  try {
    std::thread([worker] { run(*worker); }).detach();
  } catch (...) {
    delete worker;
    throw;
  }
  return worker;
}

struct Pool {
  std::mutex mutex;
  Worker* idle = nullptr;

  // A list of `count` workers, or of as many as the system lets us have.
  Worker* lease(int count) {
    Worker* list = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      for (; count > 0 && idle != nullptr; --count) {
        Worker* const worker = idle;
        idle = worker->next;
        worker->next = list;
        list = worker;
      }
    }
    try {
      for (; count > 0; --count) {
        Worker* const worker = start_worker();
        worker->next = list;
        list = worker;
      }
    } catch (const std::exception&) {  // no thread or no memory for one: a smaller team
    }
    return list;
  }

  void give_back(Worker* list) {
    const std::lock_guard<std::mutex> lock(mutex);
    while (list != nullptr) {
      Worker* const worker = list;
      list = worker->next;
      worker->next = idle;
      idle = worker;
    }
  }
};

// The child of a fork has none of its parent's workers, and locks in a state that nobody will change: it forgets the
// whole pool.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  (void)registered;
#endif
  Pool* const fresh = new Pool;
  if (the_pool.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context) noexcept {
  Pool& workers = pool();
  Worker* const list = workers.lease(threads - 1);
  Team team{body, context, 1};
  for (Worker* worker = list; worker != nullptr; worker = worker->next) worker->thread = team.threads++;
  for (Worker* worker = list; worker != nullptr; worker = worker->next) worker->team.set(&team);
  work(team, 0);
  for (Worker* worker = list; worker != nullptr; worker = worker->next) worker->team.wait_while(&team);
  workers.give_back(list);
}

void team_barrier() noexcept {
  Team& team = *current;
  const unsigned passed = team.barriers.get();
  if (team.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < team.threads) {
    team.barriers.wait_while(passed);
    return;
  }
  team.arrived.store(0, std::memory_order_relaxed);  // before anybody can arrive at the next one
  team.barriers.set(passed + 1);
}

}  // namespace lth

#endif  // no OpenMP
