// KL(teacher || student) of each row at a temperature, with gradients to both logits. With s = student / T and
// t = teacher / T, p = softmax(t), q = softmax(s):
//
//   kl = T^2 sum p (log p - log q) = T^2 (sum p (t' - s') + log sum exp s' - log sum exp t'),  x' = x - max x
//   grad_student = g T (q - p),  grad_teacher = g T p (log p - log q - kl / T^2)
#include "kd_kl.h"  // before each_isa.h: what it defines must run on every processor

#define DFKD_KERNELS "kernels/kd_kl.h"
#include "each_isa.h"

#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "priority.h"

namespace dfkd::cpu {
namespace {

constexpr int64_t kGrainElements = 1 << 13;

int64_t row_grain(int64_t size) { return std::max<int64_t>(1, kGrainElements / size); }

// Reads rows of a matrix of any floating dtype, scaled, into a buffer of one row.
struct RowReader {
  const char* base;
  int64_t size, row_bytes;
  float factor;
  float (*read)(const void*, float, int64_t, float*);

  RowReader(const Tensor& x, float factor)
      : base(static_cast<const char*>(x.const_data_ptr())),
        size(x.size(1)),
        row_bytes(size * static_cast<int64_t>(x.element_size())),
        factor(factor) {
    dispatch_float(x, [&](auto zero) {
      using T = decltype(zero);
      read = [](const void* row, float scale, int64_t n, float* out) {
        return DFKD_PICK(load_row<T>)(static_cast<const T*>(row), scale, n, out);
      };
    });
  }

  float operator()(int64_t row, float* out) const { return read(base + row * row_bytes, factor, size, out); }
};

// Writes them; an empty tensor takes nothing.
struct RowWriter {
  char* base;
  int64_t size, row_bytes;
  void (*write)(const float*, int64_t, void*);

  RowWriter(const Tensor& x, int64_t size)
      : base(x.numel() ? static_cast<char*>(x.mutable_data_ptr()) : nullptr),
        size(size),
        row_bytes(size * static_cast<int64_t>(x.element_size())) {
    dispatch_float(x, [&](auto zero) {
      using T = decltype(zero);
      write = [](const float* row, int64_t n, void* out) { DFKD_PICK(store_row<T>)(row, n, static_cast<T*>(out)); };
    });
  }

  void operator()(int64_t row, const float* values) const {
    if (base) write(values, size, base + row * row_bytes);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> kd_kl_forward(const Tensor& student, const Tensor& teacher, double temperature) {
  const int64_t rows = student.size(0), size = student.size(1);
  const auto vector = [&] { return torch::stable::new_empty(student, {rows}, torch::headeronly::ScalarType::Float); };
  Tensor kl = vector(), lse_student = vector(), lse_teacher = vector();
  float *out = kl.mutable_data_ptr<float>(), *out_student = lse_student.mutable_data_ptr<float>(),
        *out_teacher = lse_teacher.mutable_data_ptr<float>();
  const float scale = static_cast<float>(1.0 / temperature), square = static_cast<float>(temperature * temperature);
  const RowReader read_student(student, 1.f), read_teacher(teacher, 1.f);
  const auto kernel = DFKD_PICK(row_kl);
  torch::stable::parallel_for(0, rows, row_grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(2 * size);
    float *s = buffer.data(), *t = s + size;
    for (int64_t row = begin; row < end; ++row) {
      const float student_max = read_student(row, s), teacher_max = read_teacher(row, t);
      const RowKl result = kernel(s, student_max, t, teacher_max, scale, size);
      out[row] = square * result.kl;
      out_student[row] = result.lse_student;
      out_teacher[row] = result.lse_teacher;
    }
  });
  return {kl, lse_student, lse_teacher};
}

std::tuple<Tensor, Tensor> kd_kl_backward(const Tensor& grad_kl, const Tensor& student, const Tensor& teacher,
                                          const Tensor& lse_student, const Tensor& lse_teacher, const Tensor& kl,
                                          double temperature, bool need_student, bool need_teacher) {
  const int64_t rows = student.size(0), size = student.size(1);
  const auto gradient_of = [](const Tensor& x, bool needed) {
    return needed ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  };
  Tensor grad_student = gradient_of(student, need_student), grad_teacher = gradient_of(teacher, need_teacher);
  const float *g = data<float>(grad_kl), *lse_s = data<float>(lse_student), *lse_t = data<float>(lse_teacher),
              *row_kl = data<float>(kl);
  const float scale = static_cast<float>(1.0 / temperature), factor = static_cast<float>(temperature);
  const RowReader read_student(student, scale), read_teacher(teacher, scale);
  const RowWriter write_student(grad_student, size), write_teacher(grad_teacher, size);
  const auto kernel = DFKD_PICK(row_kl_gradient);
  torch::stable::parallel_for(0, rows, row_grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(2 * size);
    float *s = buffer.data(), *t = s + size;
    for (int64_t row = begin; row < end; ++row) {
      read_student(row, s);
      read_teacher(row, t);
      kernel(s, t, {row_kl[row] * scale * scale, lse_s[row], lse_t[row]}, g[row] * factor, g[row] * factor, size);
      write_student(row, s);
      write_teacher(row, t);
    }
  });
  return {grad_student, grad_teacher};
}

std::tuple<Tensor, Tensor, Tensor> kd_kl_priority_forward(const Tensor& student, const Tensor& teacher,
                                                          const Tensor& indices, const Tensor& is_weights,
                                                          const Tensor& leaves, const Tensor& sums,
                                                          const Tensor& counts, int64_t capacity, double temperature,
                                                          double alpha, double eps) {
  auto result = kd_kl_forward(student, teacher, temperature);
  const float *kl = data<float>(std::get<0>(result)), *weights = data<float>(is_weights);
  std::vector<float> deltas(student.size(0));
  for (size_t row = 0; row < deltas.size(); ++row) deltas[row] = weights[row] * kl[row];
  SumTree(leaves, sums, counts, capacity)
      .update(data<int64_t>(indices), deltas.data(), student.size(0), static_cast<float>(alpha),
              static_cast<float>(eps));
  return result;
}

}  // namespace dfkd::cpu
