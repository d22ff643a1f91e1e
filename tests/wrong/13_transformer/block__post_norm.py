# reason: mismatch
stream = x + residual
stream = stream + lk.functional.rms_norm(attend(stream), norm_1)
return lk.functional.rms_norm(feed(stream), norm_2), stream
