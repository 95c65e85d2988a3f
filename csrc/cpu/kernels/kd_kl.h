// The vector code of kd_kl.cpp, where the formulas stand. Textual, see each_isa.h.
#include "rows.h"

namespace dfkd::cpu::DFKD_ISA {

constexpr int64_t kRowBlock = 1 << 10;  // floats are summed in runs of this length, the runs in double

// student, teacher: logits [size] and their largest values; `scale` is 1 / T. The maxima are taken off before anything
// else: what carries weight is then small, whatever constant the two rows differ by.
RowKl row_kl(const float* student, float student_max, const float* teacher, float teacher_max, float scale,
             int64_t size) {
  double student_sum = 0.0, teacher_sum = 0.0, dot = 0.0;
  for (int64_t begin = 0; begin < size; begin += kRowBlock) {
    F32 s_sum{}, t_sum{}, products{};
    each_vector(begin, std::min(begin + kRowBlock, size), [&](int64_t i, auto n) {
      const F32 s = (load(student + i, n) - student_max) * scale, t = (load(teacher + i, n) - teacher_max) * scale;
      const F32 exp_t = keep_first(exp(t), n);
      s_sum += keep_first(exp(s), n);
      t_sum += exp_t;
      products += exp_t * (t - s);
    });
    student_sum += sum_lanes(s_sum);
    teacher_sum += sum_lanes(t_sum);
    dot += sum_lanes(products);
  }
  const double log_student = std::log(student_sum), log_teacher = std::log(teacher_sum);
  return {static_cast<float>(dot / teacher_sum + log_student - log_teacher),
          static_cast<float>(static_cast<double>(student_max) * scale + log_student),
          static_cast<float>(static_cast<double>(teacher_max) * scale + log_teacher)};
}

// Replaces the scaled logits by their gradients.
void row_kl_gradient(float* student, float* teacher, RowKl row, float student_factor, float teacher_factor,
                     int64_t size) {
  each_vector(0, size, [&](int64_t i, auto n) {
    const F32 log_q = load(student + i, n) - row.lse_student, log_p = load(teacher + i, n) - row.lse_teacher;
    const F32 p = exp(log_p);
    store(student + i, student_factor * (exp(log_q) - p), n);
    store(teacher + i, teacher_factor * (p * (log_p - log_q - row.kl)), n);
  });
}

}  // namespace dfkd::cpu::DFKD_ISA
