// What the vector code of kd_kl and its caller share.
#pragma once

namespace dfkd::cpu {

// KL(teacher || student) of one row of scaled logits (without the factor T^2), and the logarithms of their normalisers.
struct RowKl {
  float kl, lse_student, lse_teacher;
};

}  // namespace dfkd::cpu
