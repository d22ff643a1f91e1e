// reason: mismatch
if (i >= count) return;
const float g = gate[i], sigma = 1.0f / (1.0f + expf(-g));
grad_gate[i] = grad[i] * g * sigma;
grad_up[i] = grad[i] * up[i] * sigma * (1.0f + g * (1.0f - sigma));
