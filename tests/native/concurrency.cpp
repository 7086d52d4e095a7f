// Several threads call every driver at once, each call with a team of its own, while another frees the scratch memory:
// the results are those of calls one after another, bit for bit. A forked child may compute, too, except with libgomp.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "blocks.h"
#include "bsr_conv.h"
#include "csr_conv.h"
#include "csr_linear.h"
#include "expand.h"
#include "harness.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace test {
namespace {

constexpr int kCallers = 4;
#if defined(__SANITIZE_THREAD__) || defined(__aarch64__)
constexpr int kRounds = 6;
#else
constexpr int kRounds = 40;
#endif

using T = float;

// One layer of each kind, and the results of every driver for it.
struct Layers {
  static constexpr int64_t kBatch = 37, kFew = 3, kRows = 41, kCols = 29, kNumel = 9000;
  const ConvSizes conv{3, 5, 9, 8, 6, 1, 3, 3, 2, 1, 1, 1, 1, 1, 5, 8};
  Random random{5};
  Csr<uint16_t> linear_weight = Csr<uint16_t>::of(random_mask(random, kRows, kCols, .4), kRows, kCols);
  Csr<int32_t> conv_weight = Csr<int32_t>::of(random_mask(random, 6, 45, .4), 6, 45);
  const Blocks<T> narrow{random, kRows, kCols, 4, 1, .5, true}, wide{random, kRows, kCols, 4, 4, .5, false};
  const Blocks<T> taps_of_blocks{random, 6, 45, 4, 3, .5, true};
  Array<T> x{kBatch * kCols}, grad{kBatch * kRows}, values{linear_weight.nnz}, bias{kRows};
  Array<T> image{3 * 5 * 9 * 8}, image_grad{3 * 6 * 5 * 8}, taps{conv_weight.nnz};
  Array<uint8_t> bits{kNumel / 8};
  Array<int32_t> rank{4};
  Array<T> compact{kNumel / 2};

  Layers() {
    for (const Array<T>* a : {&x, &grad, &values, &bias, &image, &image_grad, &taps, &compact}) random.fill(*a);
    std::memset(bits.data(), 0x55, static_cast<size_t>(bits.size()));
    for (int64_t i = 0; i < 4; ++i) rank[i] = static_cast<int32_t>(std::min(i * kExpandChunk, kNumel) / 2);
  }

  struct Results {
    Array<T> y{kBatch * kRows}, dx{kBatch * kCols}, dvalues, dbias{kRows};
    Array<T> few_y{kFew * kRows}, few_dx{kFew * kCols}, few_dvalues;
    Array<T> narrow_y{kBatch * kRows}, narrow_dx{kBatch * kCols}, narrow_dvalues;
    Array<T> wide_y{kBatch * kRows}, wide_few_y{kFew * kRows}, wide_dx{kBatch * kCols}, wide_dvalues;
    Array<T> image_y{3 * 6 * 5 * 8}, image_dx{3 * 5 * 9 * 8}, image_dvalues, image_dbias{6};
    Array<T> block_image_y{3 * 6 * 5 * 8}, block_image_dx{3 * 5 * 9 * 8}, block_image_dvalues;
    Array<T> dense{kNumel}, compact{kNumel / 2};
    explicit Results(const Layers& l)
        : dvalues(l.linear_weight.nnz),
          few_dvalues(l.linear_weight.nnz),
          narrow_dvalues(l.narrow.values.size()),
          wide_dvalues(l.wide.values.size()),
          image_dvalues(l.conv_weight.nnz),
          block_image_dvalues(l.taps_of_blocks.values.size()) {}
  };

  void run(const Results& r, int threads) const {
    const Csr<uint16_t>& w = linear_weight;
    const Csr<int32_t>& k = conv_weight;
    csr_linear_forward<T, uint16_t>({kBatch, kRows, kCols}, x.data(), {kCols, 1}, values.data(), bias.data(),
                                    r.y.data(), {kRows, 1}, w.crow.data(), w.col.data(), false, threads);
    csr_linear_backward<T, uint16_t>({kBatch, kRows, kCols}, {grad.data(), {kRows, 1}}, x.data(), {kCols, 1},
                                     values.data(), r.dx.data(), {kCols, 1}, r.dvalues.data(), r.dbias.data(),
                                     w.crow.data(), w.col.data(), w.ccol.data(), w.row.data(), w.perm.data(), threads);
    csr_linear_forward<T, uint16_t>({kFew, kRows, kCols}, x.data(), {kCols, 1}, values.data(), bias.data(),
                                    r.few_y.data(), {kRows, 1}, w.crow.data(), w.col.data(), false, threads);
    csr_linear_backward<T, uint16_t>({kFew, kRows, kCols}, {grad.data(), {kRows, 1}}, x.data(), {kCols, 1},
                                     values.data(), r.few_dx.data(), {kCols, 1}, r.few_dvalues.data(), nullptr,
                                     w.crow.data(), w.col.data(), w.ccol.data(), w.row.data(), w.perm.data(), threads);
    bsr_linear_forward<T>({kBatch, kRows, kCols}, x.data(), {kCols, 1}, narrow.weight(), bias.data(),
                          r.narrow_y.data(), {kRows, 1}, false, threads);
    bsr_linear_backward<T>({kBatch, kRows, kCols}, {grad.data(), {kRows, 1}}, x.data(), {kCols, 1}, narrow.weight(),
                           r.narrow_dx.data(), {kCols, 1}, r.narrow_dvalues.data(), nullptr, threads);
    bsr_linear_forward<T>({kBatch, kRows, kCols}, x.data(), {kCols, 1}, wide.weight(), nullptr, r.wide_y.data(),
                          {kRows, 1}, false, threads);
    bsr_linear_forward<T>({kFew, kRows, kCols}, x.data(), {kCols, 1}, wide.weight(), bias.data(), r.wide_few_y.data(),
                          {kRows, 1}, false, threads);
    bsr_linear_backward<T>({kBatch, kRows, kCols}, {grad.data(), {kRows, 1}}, x.data(), {kCols, 1}, wide.weight(),
                           r.wide_dx.data(), {kCols, 1}, r.wide_dvalues.data(), nullptr, threads);
    csr_conv2d_forward<T, int32_t>(conv, image.data(), taps.data(), nullptr, r.image_y.data(), k.crow.data(),
                                   k.col.data(), true, threads);
    csr_conv2d_backward<T, int32_t>(conv, image_grad.data(), image.data(), taps.data(), r.image_dx.data(),
                                    r.image_dvalues.data(), r.image_dbias.data(), k.ccol.data(), k.row.data(),
                                    k.perm.data(), false, false, threads);
    ConvSizes major = conv;  // the same memory, taken for feature-major
    major.feature_major = true;
    bsr_conv2d_forward<T>(major, image.data(), taps_of_blocks.weight(), nullptr, r.block_image_y.data(), true, threads);
    bsr_conv2d_backward<T>(conv, image_grad.data(), image.data(), taps_of_blocks.weight(), r.block_image_dx.data(),
                           r.block_image_dvalues.data(), nullptr, true, true, threads);
    expand(compact.data(), bits.data(), rank.data(), r.dense.data(), kNumel, sizeof(T), threads);
    compress(r.dense.data(), bits.data(), rank.data(), r.compact.data(), kNumel, sizeof(T), threads);
  }
};

void expect_same(const Layers::Results& found, const Layers::Results& right) {
  expect_same(found.y, right.y, "y"), expect_same(found.dx, right.dx, "dx");
  expect_same(found.dvalues, right.dvalues, "dvalues"), expect_same(found.dbias, right.dbias, "dbias");
  expect_same(found.few_y, right.few_y, "few y"), expect_same(found.few_dx, right.few_dx, "few dx");
  expect_same(found.few_dvalues, right.few_dvalues, "few dvalues");
  expect_same(found.narrow_y, right.narrow_y, "narrow y"), expect_same(found.narrow_dx, right.narrow_dx, "narrow dx");
  expect_same(found.narrow_dvalues, right.narrow_dvalues, "narrow dvalues");
  expect_same(found.wide_y, right.wide_y, "wide y"), expect_same(found.wide_dx, right.wide_dx, "wide dx");
  expect_same(found.wide_few_y, right.wide_few_y, "wide few y");
  expect_same(found.wide_dvalues, right.wide_dvalues, "wide dvalues");
  expect_same(found.image_y, right.image_y, "conv y"), expect_same(found.image_dx, right.image_dx, "conv dx");
  expect_same(found.image_dvalues, right.image_dvalues, "conv dvalues");
  expect_same(found.image_dbias, right.image_dbias, "conv dbias");
  expect_same(found.block_image_y, right.block_image_y, "conv of blocks y");
  expect_same(found.block_image_dx, right.block_image_dx, "conv of blocks dx");
  expect_same(found.block_image_dvalues, right.block_image_dvalues, "conv of blocks dvalues");
  expect_same(found.dense, right.dense, "dense"), expect_same(found.compact, right.compact, "compact");
}

#if !defined(LTH_OPENMP) && !defined(__SANITIZE_THREAD__)
// libgomp's threads do not survive a fork, and a child that asks for them hangs; those of team.h are made again.
void check_fork(const Layers& layers, const Layers::Results& right) {
  begin_case("a forked child");
  const pid_t child = fork();
  if (child == 0) {
    const Layers::Results found(layers);
    layers.run(found, 3);
    expect_same(found, right);
    _exit(failures() == 0 ? 0 : 1);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("the child's status is %d", status);
}
#endif

}  // namespace

void concurrency_part() {
  const Layers layers;
  each_isa([&](const char* isa) {
    const Layers::Results two(layers), three(layers);
    layers.run(two, 2);
    layers.run(three, 3);
    std::atomic<bool> done{false};
    std::thread trimmer([&] {
      while (!done) {
        trim();
        std::this_thread::yield();
      }
    });
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&, caller] {
        for (int round = 0; round < kRounds; ++round) {
          begin_case("concurrent calls %s caller %d round %d", isa, caller, round);
          const Layers::Results found(layers);
          layers.run(found, 2 + caller % 2);
          expect_same(found, caller % 2 ? three : two);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    done = true;
    trimmer.join();
#if !defined(LTH_OPENMP) && !defined(__SANITIZE_THREAD__)
    check_fork(layers, three);
#endif
  });
}

}  // namespace test
}  // namespace lth
