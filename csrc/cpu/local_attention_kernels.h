// Windowed attention over tiles of queries, at one instruction set (included by simd_levels.h, so no guard).
//
// Per tile and head, rows are converted to padded float rows in scratch memory: Q 32 x D, K and V (32 + w - 1) x D.
// Two products do all the work, forward and backward:
//   dots          scores[a][j] = x_a . y_j     QB x KB accumulators, summed over lanes by one transposing tree
//   weighted_sums out[a] = sum_j w[a][j] y_j   QB x 4 accumulators
// over groups of QB neighbouring queries, which share almost all keys, or one query at a time where none is near.

namespace tzn {
namespace TZN_LEVEL {

// Queries x keys of one block of dots; their product is the number of lanes.
template <typename F> constexpr int KEY_BLOCK = LANES<F> >= 8 ? 4 : 2;
template <typename F> constexpr int GROUP = LANES<F> / KEY_BLOCK<F>;

template <typename F> constexpr int64_t padded(int64_t width) { return (width + LANES<F> - 1) / LANES<F> * LANES<F>; }

template <typename F, int queries, int keys>
TZN_INLINE void dots(const F* x, const F* y, int64_t count, int64_t stride, F* scores, int64_t score_stride) {
  static_assert(queries * keys == LANES<F>, "one sum per lane");
  for (int64_t j = 0; j < count; j += keys) {
    Vec<F> sums[LANES<F>] = {};
    for (int64_t c = 0; c < stride; c += LANES<F>) {
      Vec<F> key[keys];
#pragma GCC unroll 16
      for (int b = 0; b < keys; ++b) key[b] = load(y + (j + b) * stride + c);
#pragma GCC unroll 16
      for (int a = 0; a < queries; ++a) {
        const Vec<F> query = load(x + a * stride + c);
#pragma GCC unroll 16
        for (int b = 0; b < keys; ++b) sums[a * keys + b] += query * key[b];
      }
    }
    F lane[LANES<F>];
    store(lane, sums_of<F>(sums));
#pragma GCC unroll 16
    for (int a = 0; a < queries; ++a) __builtin_memcpy(scores + a * score_stride + j, lane + a * keys, keys * sizeof(F));
  }
}

template <typename F, int queries, int vectors>
TZN_INLINE void weighted_columns(
    const F* weight, int64_t weight_stride, const F* y, int64_t count, int64_t stride, F* out) {
  Vec<F> sums[queries][vectors] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vec<F> row[vectors];
#pragma GCC unroll 8
    for (int n = 0; n < vectors; ++n) row[n] = load(y + j * stride + n * LANES<F>);
#pragma GCC unroll 8
    for (int a = 0; a < queries; ++a) {
      const Vec<F> w = splat<F>(weight[a * weight_stride + j]);
#pragma GCC unroll 8
      for (int n = 0; n < vectors; ++n) sums[a][n] += w * row[n];
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < queries; ++a)
#pragma GCC unroll 8
    for (int n = 0; n < vectors; ++n) store(out + a * stride + n * LANES<F>, sums[a][n]);
}

template <typename F, int queries>
TZN_INLINE void weighted_sums(
    const F* weight, int64_t weight_stride, const F* y, int64_t count, int64_t stride, F* out) {
  constexpr int64_t wide = 4 * LANES<F>;
  int64_t c = 0;
  for (; c + wide <= stride; c += wide)
    weighted_columns<F, queries, 4>(weight, weight_stride, y + c, count, stride, out + c);
  for (; c < stride; c += LANES<F>)
    weighted_columns<F, queries, 1>(weight, weight_stride, y + c, count, stride, out + c);
}

// Copies rows into scratch memory as padded rows; rows of invalid keys are zero. `row` null: rows first, first + 1, …
template <typename Scalar, typename F>
TZN_INLINE void pack(
    const Rows<const Scalar>& from, const int64_t* row, int64_t first, int64_t count, int64_t head, int64_t width,
    const bool* valid, F* to) {
  const int64_t stride = padded<F>(width);
  RowCursor<const Scalar> cursor(from, head);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t source = row ? row[first + i] : first + i;
    if (valid && !valid[source])
      std::memset(to + i * stride, 0, width * sizeof(F));
    else
      widen(cursor.at(source), to + i * stride, width);
  }
}

// The same for several heads, `head_size` entries apart in `to`, in the order in which they lie in memory: reading whole
// rows in a row is what processors fetch ahead.
template <typename Scalar, typename F>
TZN_INLINE void pack_heads(
    const Rows<const Scalar>& from, const int64_t* row, int64_t first, int64_t count, int64_t head_begin,
    int64_t head_end, int64_t width, const bool* valid, F* to, int64_t head_size) {
  if (from.head_stride < from.step_stride) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t head = head_begin; head < head_end; ++head)
        pack(from, row, first + i, 1, head, width, valid, to + (head - head_begin) * head_size + i * padded<F>(width));
  } else {
    for (int64_t head = head_begin; head < head_end; ++head)
      pack(from, row, first, count, head, width, valid, to + (head - head_begin) * head_size);
  }
}

// Inf and NaN times zero is NaN.
template <typename F> TZN_INLINE bool all_finite(const F* x, int64_t count) {
  Vec<F> zero[2] = {};
  int64_t i = 0;
  for (; i + 2 * LANES<F> <= count; i += 2 * LANES<F>) {
    zero[0] += load(x + i) * F(0);
    zero[1] += load(x + i + LANES<F>) * F(0);
  }
  for (; i < count; i += LANES<F>) zero[0] += load(x + i) * F(0);
  return sum<F>(zero[0] + zero[1]) == F(0);
}

// Scores of one query times `scale` plus biases, -inf for invalid keys, where no vector code does: irregular times, masks.
template <typename F>
TZN_INLINE void add_bias_one_by_one(
    const Plan& plan, int64_t query, const F* bias, const bool* valid, F scale, F* row) {
  const int64_t length = plan.high[query] - plan.low[query], first = plan.low[query];
  const int64_t base = plan.offset[query] - (plan.time ? plan.time[first] : first);
  for (int64_t j = 0; j < length; ++j) {
    row[j] *= scale;
    if (bias) row[j] += bias[base + (plan.time ? plan.time[first + j] : first + j)];
    if (valid && !valid[first + j]) row[j] = -std::numeric_limits<F>::infinity();
  }
}

// Softmax of one query's scores in place: entries begin … end - 1 of `x` are its keys, the others up to `count` get
// weight 0. `x` is readable and writable for one vector past `count`, `bias` `count` entries before its first (where
// `begin` is) and a vector past them.
template <typename F>
TZN_INLINE void softmax(
    const Plan& plan, int64_t query, const F* bias, const bool* valid, F scale, int64_t begin, int64_t end, int64_t count,
    F* x) {
  using I = std::remove_reference_t<decltype(IntVec<F>{}[0] + 0)>;
  const bool simple = !valid && plan.regular(query);
  if (!simple) add_bias_one_by_one(plan, query, bias, valid, scale, x + begin);
  const F* added = bias && simple ? bias + plan.offset[query] - begin : nullptr;
  const Vec<F> factor = splat<F>(simple ? scale : F(1)), lowest = splat<F>(-std::numeric_limits<F>::infinity());
  Vec<F> top = lowest;
  IntVec<F> index = lane_index<F>() - static_cast<I>(begin);  // of the key in the query's own range
  const auto length = static_cast<I>(end - begin);
  for (int64_t j = 0; j < count; j += LANES<F>, index += static_cast<I>(LANES<F>)) {
    Vec<F> logit = load(x + j) * factor;
    if (added) logit += load(added + j);
    logit = ((index >= 0) & (index < length)) ? logit : lowest;
    top = larger<F>(top, logit);
    store(x + j, logit);
  }
  const F most = highest<F>(top);
  Vec<F> total{};
  for (int64_t j = 0; j < count; j += LANES<F>) {
    const Vec<F> e = exp_negative(load(x + j) - most);
    total += e;
    store(x + j, e);
  }
  const F share = F(1) / sum<F>(total);
  for (int64_t j = 0; j < count; j += LANES<F>) store(x + j, load(x + j) * share);
}

// How many queries from `begin` on work together: GROUP when most of them exist and lie close, else 1.
template <typename F> TZN_INLINE int64_t group_size(const Plan& plan, const Tile& tile, int64_t begin) {
  const int64_t end = std::min(tile.query_end, begin + GROUP<F>);
  if (end - begin <= GROUP<F> / 2) return 1;
  return plan.high[end - 1] - plan.high[begin] <= 2 * GROUP<F> ? end - begin : 1;
}

template <typename F> struct TileMemory {
  F *q, *k, *v, *grad, *scores, *dscores, *out;
  F* biases;             // of one head, with zeros on both sides
  const F* bias;         // the same, or null without
  const bool* valid;     // of each key row; null where all rows of the tile are valid
  int64_t window, stride, score_stride;

  TileMemory(Scratch<F>& scratch, const Plan& plan, int64_t queries, int64_t keys, int64_t span, bool biased, bool backward)
      : window(biased ? plan.window : 0) {
    stride = padded<F>(plan.width);
    score_stride = span + 3 * LANES<F>;
    q = backward ? scratch.take((queries + LANES<F>) * stride) : nullptr;
    k = backward ? scratch.take((keys + LANES<F>) * stride) : nullptr;
    v = backward ? scratch.take((keys + LANES<F>) * stride) : nullptr;
    scores = scratch.take(GROUP<F> * score_stride);
    out = scratch.take(GROUP<F> * stride);
    grad = backward ? scratch.take((queries + LANES<F>) * stride) : nullptr;
    dscores = backward ? scratch.take(GROUP<F> * score_stride) : nullptr;
    biases = scratch.take(2 * score_stride + window) + score_stride;
    bias = nullptr, valid = nullptr;
  }

  TZN_INLINE void enter(const Plan& plan, const Tile& tile, const F* head_bias) {
    bias = head_bias ? biases : nullptr;
    if (head_bias) std::memcpy(biases, head_bias, window * sizeof(F));
    const size_t keys = tile.key_end - tile.key_begin;
    valid = plan.valid && std::memchr(plan.valid + tile.key_begin, 0, keys) ? plan.valid : nullptr;
  }
};

template <typename F, int queries>
TZN_INLINE void group_weights(
    const Plan& plan, int64_t begin, int64_t present, const F* q, const F* k, int64_t span, const TileMemory<F>& memory) {
  dots<F, queries, LANES<F> / queries>(q, k, span, memory.stride, memory.scores, memory.score_stride);
  const F scale = F(1) / std::sqrt(static_cast<F>(plan.width));
  for (int64_t a = 0; a < present; ++a) {
    const int64_t first = plan.low[begin + a] - plan.low[begin];
    const int64_t last = plan.high[begin + a] - plan.low[begin];
    softmax<F>(
        plan, begin + a, memory.bias, memory.valid, scale, first, last, span, memory.scores + a * memory.score_stride);
  }
}

// Queries of one tile and head, whose packed rows `m` holds.
template <typename Scalar>
TZN_INLINE void attend_tile(
    const Forward<Scalar>& task, const Tile& tile, int64_t head, const TileMemory<Compute<Scalar>>& m) {
  using F = Compute<Scalar>;
  const Plan& plan = *task.plan;
  RowCursor<Scalar> out(task.out, head);
  // In a group, keys outside a query's window have weight 0: harmless unless their values are not finite.
  const bool grouped = all_finite(m.v, (tile.key_end - tile.key_begin) * m.stride);
  for (int64_t i = tile.query_begin; i < tile.query_end;) {
    const int64_t present = grouped ? group_size<F>(plan, tile, i) : 1;
    const int64_t first = plan.low[i] - tile.key_begin, span = plan.high[i + present - 1] - plan.low[i];
    const F *q = m.q + (i - tile.query_begin) * m.stride, *k = m.k + first * m.stride, *v = m.v + first * m.stride;
    if (present > 1) {
      group_weights<F, GROUP<F>>(plan, i, present, q, k, span, m);
      weighted_sums<F, GROUP<F>>(m.scores, m.score_stride, v, span, m.stride, m.out);
    } else {
      group_weights<F, 1>(plan, i, 1, q, k, span, m);
      weighted_sums<F, 1>(m.scores, m.score_stride, v, span, m.stride, m.out);
    }
    for (int64_t a = 0; a < present; ++a) narrow(m.out + a * m.stride, out.at(plan.row[i + a]), plan.width);
    i += present;
  }
}

// Units of the task until there are no more.
template <typename Scalar> void attend(const Forward<Scalar>& task) {
  using F = Compute<Scalar>;
  const Plan& plan = *task.plan;
  Scratch<F> scratch;
  const int64_t blocks = task.blocks(), tile_units = task.tile_units(), units = tile_units + task.clear_units();
  TileMemory<F> m(scratch, plan, TILE, plan.longest_tile, plan.longest_range + 2 * GROUP<F>, task.bias, false);
  const int64_t query_size = (TILE + LANES<F>) * m.stride, key_size = (plan.longest_tile + LANES<F>) * m.stride;
  const bool narrow_rows = m.stride != plan.width;
  F* const q = scratch.take(task.heads_together * query_size, narrow_rows);
  F* const k = scratch.take(task.heads_together * key_size, narrow_rows);
  F* const v = scratch.take(task.heads_together * key_size, narrow_rows);
  int64_t longest = 0;  // in keys, so far
  int64_t unit = task.units->take();
  for (; unit < tile_units; unit = task.units->take()) {
    const Tile& tile = plan.tiles[unit / blocks];
    const int64_t queries = tile.query_end - tile.query_begin, keys = tile.key_end - tile.key_begin;
    const int64_t first = unit % blocks * task.heads_together, last = std::min(first + task.heads_together, plan.heads);
    pack_heads(task.q, plan.row.data(), tile.query_begin, queries, first, last, plan.width, nullptr, q, query_size);
    pack_heads(task.k, nullptr, tile.key_begin, keys, first, last, plan.width, plan.valid, k, key_size);
    pack_heads(task.v, nullptr, tile.key_begin, keys, first, last, plan.width, plan.valid, v, key_size);
    if (keys > longest) {  // dots read rows past the last key: garbage there may be denormal, which is slow
      for (int64_t block = 0; block < task.heads_together; ++block)
        std::memset(k + block * key_size + keys * m.stride, 0, LANES<F> * m.stride * sizeof(F));
      longest = keys;
    }
    for (int64_t head = first; head < last; ++head) {
      m.enter(plan, tile, task.bias ? task.bias + head * plan.window : nullptr);
      m.q = q + (head - first) * query_size, m.k = k + (head - first) * key_size, m.v = v + (head - first) * key_size;
      attend_tile(task, tile, head, m);
    }
  }
  for (; unit < units; unit = task.units->take()) {
    const int64_t first = (unit - tile_units) * CLEARED;
    clear_between(plan, task.out, first, std::min(first + CLEARED, plan.query_rows));
  }
}

// Gradient of the scores of one query, in place of the gradient of its weights: ds = p (dp - sum(p dp)). Entries begin …
// end - 1 are its keys; the others become 0.
template <typename F>
TZN_INLINE void softmax_backward(const F* weight, F* dscores, int64_t begin, int64_t end, int64_t count) {
  using I = std::remove_reference_t<decltype(IntVec<F>{}[0] + 0)>;
  const IntVec<F> lane = lane_index<F>() - static_cast<I>(begin);
  const auto length = static_cast<I>(end - begin);
  IntVec<F> index = lane;
  Vec<F> parts{};
  for (int64_t j = 0; j < count; j += LANES<F>, index += static_cast<I>(LANES<F>))
    parts += ((index >= 0) & (index < length)) ? load(weight + j) * load(dscores + j) : Vec<F>{};
  const F total = sum<F>(parts);
  index = lane;
  for (int64_t j = 0; j < count; j += LANES<F>, index += static_cast<I>(LANES<F>)) {
    const Vec<F> found = load(weight + j) * (load(dscores + j) - total);
    store(dscores + j, ((index >= 0) & (index < length)) ? found : Vec<F>{});
  }
}

template <typename F> TZN_INLINE void add_bias_gradient(const Plan& plan, int64_t query, const F* dscores, F* dbias) {
  const int64_t length = plan.high[query] - plan.low[query], first = plan.low[query];
  if (plan.regular(query)) {
    for (int64_t j = 0; j < length; ++j) dbias[plan.offset[query] + j] += dscores[j];
  } else {
    const int64_t base = plan.offset[query] - plan.time[first];
    for (int64_t j = 0; j < length; ++j) dbias[base + plan.time[first + j]] += dscores[j];
  }
}

// First pass, per (tile of queries, head): softmax weights and score gradients, kept for the second; dq; part of dbias.
template <typename Scalar> void backward_queries(const Backward<Scalar>& task, int64_t begin, int64_t end) {
  using F = Compute<Scalar>;
  const Plan& plan = *task.plan;
  Scratch<F> scratch;
  TileMemory<F> m(scratch, plan, TILE, plan.longest_tile, plan.longest_range + 2 * GROUP<F>, task.bias, true);
  const F scale = F(1) / std::sqrt(static_cast<F>(plan.width));
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile& tile = plan.tiles[unit / plan.heads];
    const int64_t head = unit % plan.heads, keys = tile.key_end - tile.key_begin;
    const int64_t queries = tile.query_end - tile.query_begin;
    m.enter(plan, tile, task.bias ? task.bias + head * plan.window : nullptr);
    F* dbias = task.dbias ? task.dbias + unit * plan.window : nullptr;
    clear_gaps(plan, tile, task.dq, head, head + 1);
    pack(task.q, plan.row.data(), tile.query_begin, queries, head, plan.width, nullptr, m.q);
    pack(task.grad, plan.row.data(), tile.query_begin, queries, head, plan.width, nullptr, m.grad);
    pack(task.k, nullptr, tile.key_begin, keys, head, plan.width, m.valid, m.k);
    pack(task.v, nullptr, tile.key_begin, keys, head, plan.width, m.valid, m.v);
    RowCursor<Scalar> dq(task.dq, head);
    for (int64_t i = tile.query_begin; i < tile.query_end;) {
      const int64_t present = group_size<F>(plan, tile, i), base = plan.low[i];
      const int64_t first = base - tile.key_begin, span = plan.high[i + present - 1] - base;
      const int64_t local = (i - tile.query_begin) * m.stride;
      const F *k = m.k + first * m.stride, *v = m.v + first * m.stride;
      if (present > 1) {
        group_weights<F, GROUP<F>>(plan, i, present, m.q + local, k, span, m);
        dots<F, GROUP<F>, KEY_BLOCK<F>>(m.grad + local, v, span, m.stride, m.dscores, m.score_stride);
      } else {
        group_weights<F, 1>(plan, i, 1, m.q + local, k, span, m);
        dots<F, 1, LANES<F>>(m.grad + local, v, span, m.stride, m.dscores, m.score_stride);
      }
      for (int64_t a = 0; a < present; ++a) {
        const int64_t low = plan.low[i + a] - base, high = plan.high[i + a] - base;
        F *weight = m.scores + a * m.score_stride, *dscores = m.dscores + a * m.score_stride;
        softmax_backward(weight, dscores, low, high, span);
        if (dbias) add_bias_gradient(plan, i + a, dscores + low, dbias);
        for (int64_t j = 0; j < span; ++j) dscores[j] *= scale;
        const int64_t kept = ((i + a) * plan.heads + head) * plan.longest_range;
        std::memcpy(task.weights + kept, weight + low, (high - low) * sizeof(F));
        std::memcpy(task.dscores + kept, dscores + low, (high - low) * sizeof(F));
      }
      if (present > 1)
        weighted_sums<F, GROUP<F>>(m.dscores, m.score_stride, k, span, m.stride, m.out);
      else
        weighted_sums<F, 1>(m.dscores, m.score_stride, k, span, m.stride, m.out);
      for (int64_t a = 0; a < present; ++a) narrow(m.out + a * m.stride, dq.at(plan.row[i + a]), plan.width);
      i += present;
    }
  }
}

// What query `i` kept for the key rows first … first + count - 1, zero outside its range, one row per key.
template <typename F>
TZN_INLINE void transpose_kept(
    const Plan& plan, const F* kept, int64_t head, int64_t first, int64_t count, int64_t query_begin,
    int64_t query_end, int64_t stride, F* to) {
  for (int64_t i = query_begin; i < query_end; ++i) {
    const F* from = kept + (i * plan.heads + head) * plan.longest_range - plan.low[i];
    for (int64_t b = 0; b < count; ++b) {
      const int64_t key = first + b;
      to[b * stride + i - query_begin] = key >= plan.low[i] && key < plan.high[i] ? from[key] : F(0);
    }
  }
}

// Second pass, per (block of keys, head): dk_j = sum_i ds_ij q_i and dv_j = sum_i p_ij grad_i over the queries that read
// key j. Every key row has one owner, so nothing is added atomically.
template <typename Scalar> void backward_keys(const Backward<Scalar>& task, int64_t begin, int64_t end) {
  using F = Compute<Scalar>;
  const Plan& plan = *task.plan;
  Scratch<F> scratch;
  const int64_t stride = padded<F>(plan.width);
  F *q = scratch.take(task.longest_readers * stride), *grad = scratch.take(task.longest_readers * stride);
  F *weight = scratch.take(GROUP<F> * task.longest_readers), *out = scratch.take(GROUP<F> * stride);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t head = unit % plan.heads, first = unit / plan.heads * TILE;
    const int64_t last = std::min(first + TILE, plan.key_rows);
    // Keys that nobody reads have an empty range of readers, which may lie anywhere.
    int64_t reader_begin = plan.queries(), reader_end = 0;
    for (int64_t key = first; key < last; ++key) {
      if (task.query_begin[key] >= task.query_end[key]) continue;
      reader_begin = std::min(reader_begin, task.query_begin[key]);
      reader_end = std::max(reader_end, task.query_end[key]);
    }
    const int64_t readers = std::max<int64_t>(reader_end - reader_begin, 0);
    pack(task.q, plan.row.data(), reader_begin, readers, head, plan.width, nullptr, q);
    pack(task.grad, plan.row.data(), reader_begin, readers, head, plan.width, nullptr, grad);
    for (int64_t key = first; key < last; key += GROUP<F>) {
      const int64_t count = std::min<int64_t>(GROUP<F>, last - key);
      int64_t low = plan.queries(), high = 0;  // empty, also in a block that nobody reads
      for (int64_t b = 0; b < count; ++b) {
        if (task.query_begin[key + b] >= task.query_end[key + b]) continue;
        low = std::min(low, task.query_begin[key + b]);
        high = std::max(high, task.query_end[key + b]);
      }
      const int64_t span = std::max<int64_t>(high - low, 0), local = span ? (low - reader_begin) * stride : 0;
      const std::pair<const F*, const F*> sources[2] = {{task.weights, grad}, {task.dscores, q}};
      for (int part = 0; part < 2; ++part) {
        transpose_kept(plan, sources[part].first, head, key, count, low, low + span, task.longest_readers, weight);
        weighted_sums<F, GROUP<F>>(weight, task.longest_readers, sources[part].second + local, span, stride, out);
        const Rows<Scalar>& to = part ? task.dk : task.dv;
        for (int64_t b = 0; b < count; ++b) narrow(out + b * stride, to.at(key + b, head), plan.width);
      }
    }
  }
}

}  // namespace TZN_LEVEL
}  // namespace tzn
