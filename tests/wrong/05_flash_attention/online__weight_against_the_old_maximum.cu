// reason: not_finite
const float new_max = fmaxf(max, score);
const float correction = __expf(max - new_max);
const float weight = __expf(score - max);
max = new_max;
sum = sum * correction + weight;
o.x = o.x * correction + weight * v_pair.x;
o.y = o.y * correction + weight * v_pair.y;
