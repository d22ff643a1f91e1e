// reason: mismatch
const float z = sum + bias[col];
const float u = 0.7978845608f * (z + 0.044715f * z * z);
y[row * cols + col] = 0.5f * z * (1.0f + tanhf(u));
