// reason: mismatch
max = fmaxf(max, score);
const float correction = __expf(max - max);      // always 1: the old maximum is gone
const float weight = __expf(score - max);
sum = sum * correction + weight;
o.x = o.x * correction + weight * v_pair.x;
o.y = o.y * correction + weight * v_pair.y;
